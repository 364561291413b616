# SPDX-License-Identifier: Apache-2.0
"""Policy: the rights of a command, that is capabilities, no_new_privs, seccomp and nesting."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from .. import _types
from .._seccomp import filters
from .._values import Value, check_choice, check_flag, check_text, is_several, unknown_keyword
from ..errors import SpecError, SpecTypeError, setup_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: All capabilities of linux/capability.h, in the order of their numbers; capabilities(7).
CAPABILITIES = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable "
    "net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio "
    "sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time "
    "sys_tty_config mknod lease audit_write audit_control setfcap mac_override mac_admin syslog "
    "wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
).split()

#: The capabilities that builds need, without those that lead out of a sandbox.
DEFAULT_CAPABILITIES = (
    "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw "
    "sys_chroot setfcap"
).split()

_MOST_BYTES = 4 << 20  # the longest profile; Docker's default has 30,000 bytes
_WHERE = "a path of the caller's, outside of the sandbox; a str is default, builds or none"


class Profile(Value):
    """A seccomp profile of a Policy, as JSON in one canonical form. A frozen value.

    content: mapping, the profile as json.loads gives it. Raises SpecError if it is not JSON.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    _fields = ("text",)
    text: str

    def __init__(self, content: Mapping[str, _types.Any]) -> None:
        import json

        try:
            text = json.dumps(_plain(content), sort_keys=True, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            raise SpecError(f"the seccomp profile is no JSON: {error}") from None
        self.__dict__["text"] = text

    def __setstate__(self, state: object) -> None:
        text = state.get("text") if isinstance(state, dict) and len(state) == 1 else None
        if not isinstance(text, str):
            raise SpecTypeError("a pickle does not have what a seccomp profile is made of")
        content = _parsed(text.encode("utf-8", "surrogatepass"), "a seccomp profile in a pickle")
        self.__init__(content)  # type: ignore[misc]

    @classmethod
    def read(cls, path: os.PathLike[str]) -> Profile:
        """Reads the profile in a file. path: a PathLike.

        Raises SetupError if the file cannot be read, SpecError if it is no JSON, no regular file,
        or longer than 4 MiB.
        """
        name = check_text("the path of a seccomp profile", path)
        try:
            # O_NONBLOCK: opening a FIFO would wait until its other end is open, perhaps for ever.
            with open(name, "rb", opener=_open_at_once) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise SpecError(f"the seccomp profile {name} is no regular file")
                data = file.read(_MOST_BYTES + 1)
        except OSError as error:
            what = f"read the seccomp profile {name}"
            raise setup_error(error.errno or 0, name, "seccomp", what, _WHERE) from None
        if len(data) > _MOST_BYTES:
            raise SpecError(f"the seccomp profile {name} is longer than {_MOST_BYTES} bytes")
        return cls(_parsed(data, f"the seccomp profile {name}"))

    def content(self) -> dict[str, _types.Any]:
        """Returns the profile as json.loads gives it: a new dict."""
        import json

        content: dict[str, Any] = json.loads(self.text)
        return content

    def __repr__(self) -> str:
        return f"Profile({self.content()!r})"


#: A profile, as Policy(seccomp=) takes it.
Seccomp = os.PathLike[str] | Mapping[str, object] | Profile


def _parsed(data: bytes, what: str) -> dict[str, Any]:
    from .._seccomp.profile import parse

    content = parse(data, what)
    if not isinstance(content, dict):
        raise SpecError(f"{what} is no JSON object")
    return content


def _open_at_once(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _plain(value: object) -> object:
    """Turns mappings into dicts and tuples into lists, as json writes no other containers."""
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError("a name in it is not a str")
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


class Policy(Value):
    """What the commands of a Sandbox may do. A frozen value.

    capabilities          'default' (the default): DEFAULT_CAPABILITIES, twelve that builds need, as
                          far as the caller has them. 'all': those of the caller; commands of root
                          can leave the sandbox then. 'none': no capability. Or a list of names,
                          like ['net_admin'] or ['CAP_NET_ADMIN']; the caller must have each of
                          them, and in the filter 'builds' each opens the system calls that need it
                          (capabilities(7)).
    no_new_privs: bool    True (the default): set-user-ID programs give no privilege (prctl(2),
                          PR_SET_NO_NEW_PRIVS). False: those of the root work.
    seccomp               the filter of system calls (docs/seccomp.md). 'default' (the default): the
                          best filter of the executor; Result.isolation tells which. 'builds': the
                          filter of sandboxlib, or UnsupportedError. 'none': no filter. Or a
                          seccomp profile in the form of OCI and Docker: a mapping, or the path of a
                          JSON file as a PathLike, which is read when the Policy is made (SetupError
                          if it cannot be read). A str is always one of the three names.
    nesting: bool         False (the default): no user namespaces and no mounts inside. True: a
                          command may make sandboxes of its own, with bwrap, unshare or sandboxlib.
                          The first run of the Sandbox raises UnsupportedError if its commands are
                          uid 0 of the machine: as root, give user=1000. SpecError with a profile.

    All are keyword arguments. Raises SpecError (a ValueError) if a value is wrong, or two of them
    contradict each other, and SpecTypeError for a value of the wrong type, or an unknown keyword
    argument.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    _fields = ("capabilities", "no_new_privs", "seccomp", "nesting")
    capabilities: _types.Literal["default", "all", "none"] | tuple[str, ...]
    no_new_privs: bool
    seccomp: _types.FilterName | Profile
    nesting: bool

    def __init__(
        self,
        *,
        capabilities: _types.Capabilities = "default",
        no_new_privs: bool = True,
        seccomp: _types.FilterName | Seccomp = "default",
        nesting: bool = False,
        **unknown: _types.NoReturn,
    ) -> None:
        if unknown:
            raise unknown_keyword("Policy", unknown, self._fields)
        check_flag("no_new_privs", no_new_privs)
        check_flag("nesting", nesting)
        values: dict[str, object] = {
            "capabilities": _capabilities(capabilities),
            "no_new_privs": no_new_privs,
            "seccomp": _checked_seccomp(seccomp),
            "nesting": nesting,
        }
        self.__dict__.update(values)
        if isinstance(self.seccomp, Profile):
            if nesting:
                raise SpecError("nesting says what a filter leaves open, and there is a profile")
            _check_program(program_of(self))

    def replace(self, **changes: _types.Any) -> Policy:
        """Returns a Policy with other values: policy.replace(nesting=True).

        changes: any keyword argument of Policy. Raises the errors of Policy.
        """
        policy: Policy = self._replaced(changes)
        return policy

    __replace__ = replace  # copy.replace() of Python 3.13


def _check_program(program: bytes) -> None:
    """SpecError if a profile closes our own last system calls: execve, and exit if that fails."""
    from .._seccomp.filters import native_abi
    from .._seccomp.profile import ALLOWED, FATAL, answer

    abi = native_abi()
    for name in ("exit", "exit_group"):
        if answer(program, name, abi) not in ALLOWED:
            raise SpecError(f"the seccomp profile closes {name}: no command could end")
    if answer(program, "execve", abi) in FATAL:
        raise SpecError(
            "the seccomp profile kills a process that calls execve: no command could begin"
        )


def _capabilities(value: object) -> str | tuple[str, ...]:
    if isinstance(value, str):
        if value.lower().removeprefix("cap_") in CAPABILITIES:
            raise SpecTypeError(f"capabilities is one name, and has to be a list: [{value!r}]")
        check_choice("capabilities", value, ("default", "all", "none"))
        return value
    if not is_several(value):
        raise SpecTypeError(f"capabilities is neither a str nor a list of names: {value!r}")
    names = []
    for name in value:
        names.append(check_text("a capability", name).lower().removeprefix("cap_"))
        check_choice("a capability", names[-1], CAPABILITIES)
    return tuple(sorted(set(names))) or "none"


def _checked_seccomp(value: object) -> str | Profile:
    if isinstance(value, str):
        if "/" in value or value.endswith(".json"):
            raise SpecTypeError(f"a seccomp profile is a path, not a str: pathlib.Path({value!r})")
        check_choice("seccomp", value, ("default", "builds", "none"))
        return value
    if isinstance(value, Profile):
        return value
    if isinstance(value, os.PathLike):
        return Profile.read(value)
    if isinstance(value, Mapping):
        return Profile(value)
    raise SpecTypeError(f"seccomp is neither a str, nor a path, nor a mapping: {value!r}")


def filter_of(policy: Policy) -> str:
    """The filter as Result.isolation names it: 'none', 'builds' or 'profile'."""
    if isinstance(policy.seccomp, Profile):
        return "profile"
    return "none" if policy.seccomp == "none" else "builds"


def names_of(policy: Policy) -> frozenset[str]:
    """The names of the capabilities of a Policy. In a filter each opens the calls that need it."""
    named_sets = {"default": DEFAULT_CAPABILITIES, "all": CAPABILITIES, "none": ()}
    asked = policy.capabilities
    return frozenset(named_sets[asked] if isinstance(asked, str) else asked)


def program_of(policy: Policy, in_slot: bool = False) -> bytes:
    """The filter of a Policy, as seccomp(2) takes it; b"" if it has none.

    in_slot: bool, for the resident of a slot; see _seccomp.filters.builds.
    """
    if policy.seccomp == "none":
        return b""
    if isinstance(policy.seccomp, Profile):
        return filters.from_profile(policy.seccomp.text, names_of(policy))
    return filters.builds(names_of(policy), nesting=policy.nesting, in_slot=in_slot)


DEFAULT = Policy()
#: Policy(**ALL) is for the programs of executors, and for the form of sandboxlib 0.3.
ALL: dict[str, Any] = {"capabilities": "all", "seccomp": "none"}
