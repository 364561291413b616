# SPDX-License-Identifier: Apache-2.0
"""Spec: where commands run, a frozen value that is checked when it is made."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence

from .. import _types, errors
from .._values import (
    AnyStore,
    Value,
    absolute,
    check_choice,
    check_flag,
    check_inside,
    check_number,
    check_path,
    check_text,
    is_several,
    short,
    unknown_keyword,
)
from ..errors import SpecError, SpecTypeError
from .command import ELSEWHERE, OPTIONS, Command
from .limits import Limits
from .mount import Mount, _mount, as_call, hidden
from .overlay import Defaults, Layers, Overlay
from .policy import DEFAULT, Policy
from .user import User, check_user

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._types import Path

MOST_LIMITED = 64  # a Sandbox keeps plans for so many different Command.limits


def _writable(value: object) -> str | tuple[str, ...]:
    if isinstance(value, str):
        if value.startswith("/"):
            text = f"one path, and has to be a list of them: [{value!r}]"
            raise SpecTypeError(f"filesystem_writable_paths is {text}")
        check_choice("filesystem_writable_paths", value, ("all", "none"))
        return value
    if not is_several(value):
        raise SpecTypeError(f"filesystem_writable_paths is neither a str nor a list: {_one(value)}")
    paths = [check_path("a writable path", path) for path in value]
    writable = sorted({check_inside("a writable path", "/" + path.lstrip("/")) for path in paths})
    return "all" if "/" in writable else tuple(writable) or "none"


def _one(value: object) -> str:
    """A value that is no list, and the list of it if it is one path."""
    return f"{value!r}; one path is [{value!r}]" if isinstance(value, os.PathLike) else f"{value!r}"


def _devices(value: object) -> str | tuple[str, ...]:
    """Checks `devices` of a Sandbox: 'minimal', 'root', or paths below /dev."""
    if isinstance(value, str):
        if value.startswith("/"):
            raise SpecTypeError(f"devices is one path, and has to be a list of them: [{value!r}]")
        check_choice("devices", value, ("minimal", "root"))
        return value
    if not is_several(value):
        raise SpecTypeError(f"devices is neither a str nor a list of paths: {_one(value)}")
    paths = sorted({check_inside("a device", path) for path in value})
    for path in paths:
        if not path.startswith("/dev/"):
            raise SpecError(f"a device is not below /dev: {path!r}; Mount.bind takes it elsewhere")
    return tuple(paths) or "minimal"


class Spec(Value):
    """Where commands run, as checked values. sandboxlib.Sandbox adds the methods that run them.

    Two Specs with the same values are equal, but share no plans and slots.
    """

    _fields = (
        *("root", "network", "mounts", "processes", "ipc", "hostname", "extra_mounts"),
        *("filesystem_writable_paths", "devices", "policy", "init", "user"),
        *("umask", "limits", "deterministic", "tmp", "resolv_conf", "personality"),
        "store",
    )
    root: str | Overlay | Layers
    network: _types.Kind
    mounts: _types.Kind
    processes: _types.Kind
    ipc: _types.Kind
    hostname: str | None
    extra_mounts: tuple[Mount, ...]
    filesystem_writable_paths: _types.Literal["all", "none"] | tuple[str, ...]
    devices: _types.Literal["minimal", "root"] | tuple[str, ...]
    policy: Policy
    init: bool
    user: _types.UserName | User
    umask: int | None
    limits: Limits | None
    deterministic: bool
    tmp: _types.Tmp
    resolv_conf: bool
    personality: _types.Literal["linux32"] | None
    _directory: str  # the root, if it is a directory; "" if it is an overlay
    _overlay: Overlay | None
    store: AnyStore | None
    _left: frozenset[str]  # the names of arguments that were None, and got a default
    _user_kind: str  # 'caller', 'root' or 'ranges'
    _ids: tuple[int, int] | None  # uid and gid of the User
    _groups: tuple[int, ...]
    _plans: dict[object, _types.Any]  # a Plan for each kind of caller
    _executors: dict[object, _types.Any]  # the Executor that was chosen, for each kind of caller
    _limited: dict[Limits, Spec]  # Sandboxes for Commands with limits, by these limits
    _of_calls: type[Spec]  # of one-shot calls: Sandbox, which api puts here from a room above
    _base: Spec | None = None  # in one of _limited: the Sandbox from which it was made
    _over: tuple[Layers, ...] = ()  # layers above those of inputs: what an earlier run had changed
    _may_lack_paths = False  # True: a writable path that the root lacks is left out, and no error

    def __init__(
        self,
        root: _types.Path | Overlay | Layers,
        *,
        network: _types.Kind = "isolated",
        mounts: _types.Kind = "isolated",
        processes: _types.Kind = "isolated",
        ipc: _types.Kind = "isolated",
        hostname: str | None = None,
        extra_mounts: Iterable[Mount | Sequence[object]] | None = (),
        filesystem_writable_paths: _types.Writable | None = None,
        tmp: _types.Tmp | None = None,
        devices: _types.Devices = "minimal",
        resolv_conf: bool = False,
        policy: Policy = DEFAULT,
        init: bool = True,
        user: int | _types.UserName | User | None = None,
        umask: int | None = None,
        limits: Limits | None = None,
        deterministic: bool = False,
        personality: _types.Literal["linux32"] | None = None,
        store: AnyStore | None = None,
        **unknown: _types.NoReturn,
    ) -> None:
        if unknown:
            raise _unknown(unknown)
        put = self.__dict__.__setitem__  # a Value refuses setattr
        left = {"filesystem_writable_paths": filesystem_writable_paths, "tmp": tmp, "user": user}
        put("_left", frozenset(name for name, value in left.items() if value is None))
        self._set_root(root)
        for name, value in (
            ("network", network),
            ("mounts", mounts),
            ("processes", processes),
            ("ipc", ipc),
        ):
            check_choice(name, value, ("undefined", "isolated"))
            put(name, value)
        put("hostname", None if hostname is None else _hostname(hostname))
        self._set_files(extra_mounts, filesystem_writable_paths, tmp)
        if personality is not None:
            check_choice("personality", personality, ("linux32",))
        put("personality", personality)
        put("devices", _devices(devices))
        if not isinstance(policy, Policy):
            raise SpecTypeError(f"policy is not a Policy: {policy!r}")
        put("policy", policy)
        for name, flag in (
            *(("init", init), ("deterministic", deterministic)),
            ("resolv_conf", resolv_conf),
        ):
            check_flag(name, flag)
            put(name, flag)
        self._set_user(user, deterministic)
        put("umask", None if umask is None else check_number("umask", umask, 0, 0o777))
        self._set_values(limits, store)
        self.__dict__.update(_plans={}, _executors={}, _limited={})
        self._check_together()

    def _set_root(self, root: Any) -> None:
        overlay = Overlay(root) if isinstance(root, Layers) else root
        is_overlay = isinstance(overlay, Overlay)
        directory = "" if is_overlay else _root(root)
        self.__dict__.update(
            root=root if is_overlay else directory,
            _directory=directory,
            _overlay=overlay if is_overlay else None,
        )

    def _set_values(self, limits: object, store: object) -> None:
        if limits is not None and not isinstance(limits, Limits):
            raise SpecTypeError(f"limits is not a Limits: {limits!r}")
        if store is not None and not isinstance(store, AnyStore):
            raise SpecTypeError(f"store is not a Store: {store!r}; Store(directory) makes one")
        self.__dict__.update(limits=limits, store=store)

    def _set_files(self, extra_mounts: Any, filesystem_writable_paths: Any, tmp: Any) -> None:
        put = self.__dict__.__setitem__
        if extra_mounts is not None and (
            isinstance(extra_mounts, (str, bytes, Mapping))
            or not isinstance(extra_mounts, Iterable)
        ):
            raise SpecTypeError(f"extra_mounts is not a list: {_as_list_of_mounts(extra_mounts)}")
        put("extra_mounts", tuple(_mount(mount) for mount in extra_mounts or ()))
        is_isolated = self.mounts == "isolated"
        if filesystem_writable_paths is None:
            is_read_only = is_isolated and self._overlay is None
            filesystem_writable_paths = "none" if is_read_only else "all"
        put("filesystem_writable_paths", _writable(filesystem_writable_paths))
        tmp = ("private" if is_isolated else "root") if tmp is None else tmp
        check_choice("tmp", tmp, ("private", "root"))
        put("tmp", tmp)

    def _check_together(self) -> None:
        for what, is_asked_for in (
            ("extra_mounts", bool(self.extra_mounts)),
            ("filesystem_writable_paths", self.filesystem_writable_paths != "all"),
            ("tmp='private'", self.tmp == "private"),
            ("resolv_conf", self.resolv_conf),
            ("a list of devices", isinstance(self.devices, tuple)),
            ("deterministic", self.deterministic),
            ("a root of layers", self._overlay is not None),
        ):
            if is_asked_for and self.mounts == "undefined":
                raise SpecError(f"{what} needs mounts='isolated'")
        if isinstance(self.devices, tuple) and "/dev" in hidden(self.extra_mounts):
            raise SpecError("devices by their paths go into a /dev that an extra mount hides")
        if self.resolv_conf and self.network == "isolated":
            raise SpecError("resolv_conf needs network='undefined': there is no name server")
        paths = self.filesystem_writable_paths
        for path in paths if self.tmp == "private" and isinstance(paths, tuple) else ():
            if f"{path}/".startswith("/tmp/"):
                text = "lies in the private /tmp, where all is writable; tmp='root' leaves"
                raise SpecError(f"the writable path {path} {text} the root's /tmp")
        self._check_overlay()
        limits = self.limits
        if limits is not None and limits.swap is not None and limits.memory is None:
            raise SpecError("a limit of swap takes one of memory: Limits(memory=..., swap=...)")
        if self._ids is not None and (self.processes != "isolated" or not self.init):
            raise SpecError("user= with a uid needs processes='isolated' and init=True")

    def _check_overlay(self) -> None:
        overlay = self._overlay
        if overlay is not None and overlay.upper is not None and self.processes != "isolated":
            text = "a process that a run left behind would go on writing there"
            raise SpecError(f"Overlay(upper=...) needs processes='isolated': {text}")
        if self.limits is None or self.limits.changes is None:
            return
        if overlay is None:
            raise SpecError(
                "Limits(changes=...) takes a root that is an Overlay; Overlay(root) is one"
            )
        if overlay.upper is not None or overlay.storage != "memory":
            raise SpecError("Limits(changes=...) bounds an upper in memory, and no other")

    @property
    def _root_name(self) -> str:
        """The root, for people."""
        return self._directory or repr(self._overlay)

    def isolation(self) -> dict[str, str]:
        """Returns network, mounts, processes and ipc of this Sandbox as a dict."""
        return {name: getattr(self, name) for name in ("network", "mounts", "processes", "ipc")}

    def replace(self, **changes: _types.Any) -> _types.Self:
        """Returns a Sandbox with other values: box.replace(network='undefined').

        changes: root, or any keyword argument of Sandbox. An argument that was None, and got a
        default that depends on others, is None again. Raises the errors of Sandbox.
        """
        return type(self)(**{**self.__getstate__(), **changes})

    __replace__ = replace  # copy.replace() of Python 3.13

    def __getstate__(self) -> dict[str, Any]:
        values = super().__getstate__()
        return {**values, **dict.fromkeys(self._left)}

    def _set_user(self, user: object, deterministic: bool) -> None:
        if user is None:
            user = "root" if deterministic else "caller"
        user = check_user(user)
        fields: dict[str, object] = {"user": user, "_user_kind": user, "_ids": None, "_groups": ()}
        if isinstance(user, User):
            fields["_user_kind"] = "ranges" if user.ranges else "caller"
            fields |= {"_ids": (user.uid, user.gid), "_groups": user.groups or ()}
        self.__dict__.update(fields)

    def _changes_of(self, upper: Any) -> Any:
        """What Result.changes is: Sandbox makes Changes of the Upper of a run."""
        return upper

    def _outputs_of(self, upper: Any, wanted: Sequence[Any], storage: Any) -> Any:
        """The outputs of a run that this process may not read: Sandbox has a confined reader. It
        takes what _inputs/reading.py has.
        """
        text = "the outputs of the run belong to other ids"
        raise errors.UnsupportedError(f"{text}: a Sandbox reads them, and no executor of its own")

    def _defaults(self) -> Defaults | None:
        """What the root says of commands, if it is an image. The image is unpacked for that.

        Raises SandboxError.
        """
        if not isinstance(self.root, Layers):
            return None
        if "_of_image" not in self.__dict__:
            self.__dict__["_of_image"] = self.root._defaults(self.store)
        found: Defaults | None = self.__dict__["_of_image"]
        return found

    def _cwd_of(self, command: Command) -> str | None:
        """The directory of a Command: its own, or that of the image; None if neither says one."""
        if command.cwd is None and (defaults := self._defaults()) is not None:
            return defaults.cwd
        return command.cwd

    def _env_of(self, command: Command) -> _types.Variables | None:
        """The environment of a Command without extra_env: its own, or that of the image; None if
        neither says one.
        """
        if command.env is None and (defaults := self._defaults()) is not None:
            return defaults.env
        return command.env

    def _with_user(self) -> Spec:
        """This Sandbox, or if it has no user of its own and its root is an image, the same with the
        user of the image. It has the plans of this one, which has no other runs.
        """
        if "user" not in self._left or not isinstance(self.root, Layers):
            return self
        if "_as_in_image" not in self.__dict__:
            defaults, box = self._defaults(), None
            if defaults is not None and defaults.user != self.user:
                box = self.replace(user=defaults.user)
                box.__dict__.update(_plans=self._plans, _of_image=defaults)
            self.__dict__["_as_in_image"] = box  # None: this one, which must not refer to itself
        found: Spec | None = self.__dict__["_as_in_image"]
        return self if found is None else found

    def _remove_foreign(self, path: str) -> None:
        """Empties a directory that has files of the caller's ranges of ids: only a process with
        these ids can do that.
        """
        raise errors.UnsupportedError(f"{path} has files of other ids, which a Sandbox removes")

    def _for(self, command: Command) -> Spec:
        """The Sandbox in which a Command runs: this one, with the limits of the Command over its
        own, and with the user of the image that is its root. Its runs use the slots of this one if
        they can (see plan_for in _runs/plan.py).
        """
        if (box := self._with_user()) is not self:
            return box._for(command)
        if command.limits is None:
            return self
        limited = self._limited.get(command.limits)
        if limited is None:
            limits = command.limits if self.limits is None else self.limits | command.limits
            limited = self.replace(limits=limits)
            limited.__dict__["_base"] = self
            if len(self._limited) >= MOST_LIMITED:
                self._limited.clear()
            self._limited[command.limits] = limited
        return limited


ELSEWHERE.update({name: f"Sandbox has it: Sandbox(root, {name}=...)" for name in Spec._fields[1:]})
for _name in Policy._fields:
    ELSEWHERE[_name] = f"Policy has it: Sandbox(root, policy=Policy({_name}=...))"


def _unknown(options: Mapping[str, object]) -> SpecTypeError:
    hint = ""
    for name in options:
        if name in ("executor", "backend"):
            hint = "the environment variable SANDBOXLIB_BACKEND names one"
        if name in ("ids", "group", *User._fields):
            return SpecTypeError(f"{name} belongs to User: Sandbox(user=User(uid, gid, groups))")
        if name in Policy._fields:
            return SpecTypeError(f"{name} belongs to Policy: Sandbox(policy=Policy({name}=...))")
        if name in Limits._fields:
            hint = f"Limits has it: Sandbox(limits=Limits({name}=...))"
        if name in OPTIONS and name not in Spec._fields:
            hint = f"Command has it: Command(argv, {name}=...)"
    return unknown_keyword("Sandbox", options, Spec._fields, hint)


def _as_list_of_mounts(value: object) -> str:
    """What was given for extra_mounts, and the list to write in its place."""
    calls: list[str] = []
    if isinstance(value, Mount):
        calls = [repr(value)]
    elif isinstance(value, str):
        calls = [as_call(value)]
    elif isinstance(value, Mapping) and not value.keys() & {"target", "source"}:
        calls = [f"Mount.bind({source!r}, {target!r})" for source, target in value.items()]
    text = short(value)
    return f"{text}; write [{', '.join(calls)}]" if calls else text


def _root(value: object) -> str:
    return absolute(check_path("the root", value))


def _hostname(value: object) -> str:
    name = check_text("hostname", value)
    if not name or len(os.fsencode(name)) > 64:  # sethostname(2), HOST_NAME_MAX
        raise SpecError(f"hostname has to be of 1 to 64 bytes: {name!r}")
    return name


@functools.lru_cache(maxsize=64, typed=True)
def _cached(kind: type[Spec], root: Path, /, **options: Any) -> Spec:
    return kind(root, **options)


_cached_policy = functools.lru_cache(maxsize=64, typed=True)(Policy)
_POLICY = frozenset(Policy._fields)
_SEVERAL = frozenset(("extra_mounts", "filesystem_writable_paths", "devices"))


def _policy_for(options: dict[str, Any]) -> Policy:
    """Takes the options of a Policy out of those of a call. It reads a profile's file each time."""
    if "policy" in options:
        names = ", ".join(sorted(_POLICY & options.keys()))
        raise errors.SpecError(
            f"there is a policy, and {names} as well: say all of it in the Policy"
        )
    given = {name: options.pop(name) for name in _POLICY & options.keys()}
    if isinstance(given.get("capabilities"), list):
        given["capabilities"] = tuple(given["capabilities"])
    if not isinstance(given.get("seccomp", ""), str):
        return Policy(**given)
    try:
        return _cached_policy(**given)
    except TypeError:  # an option cannot be hashed, or is wrong: the next line tells which
        return Policy(**given)


def sandbox_for(
    root: Path | Overlay | Layers, options: dict[str, Any], kind: type[Spec] | None = None
) -> Spec:
    """The Sandbox of a one-shot call; equal options give the same Sandbox, which has its plan once.

    One with a relative path is made anew each time, as the caller's directory may change.
    kind: the class of the Sandbox. None: sandboxlib.Sandbox.
    """
    kind = kind or Spec._of_calls
    if not _POLICY.isdisjoint(options):
        options = dict(options)
        options["policy"] = _policy_for(options)
    hashable: dict[str, Any] = {
        # Other iterables than these may be hashed by their identity, and change all the same.
        name: tuple(v) if type(v) is list or (name in _SEVERAL and is_several(v)) else v
        for name, v in options.items()
    }
    mounts = hashable.get("extra_mounts") or ()
    is_absolute = isinstance(root, str) and root.startswith("/")
    if not is_absolute or type(mounts) is not tuple or not all(type(m) is Mount for m in mounts):
        return kind(root, **hashable)
    try:
        return _cached(kind, root, **hashable)  # type: ignore[arg-type]
    except TypeError:  # an option cannot be hashed, or is wrong: the next line tells which
        return kind(root, **hashable)
