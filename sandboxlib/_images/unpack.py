# SPDX-License-Identifier: Apache-2.0
"""The parent's side of unpacking: it makes a directory, runs the child in a sandbox, and checks the
child's answer.

The parent parses no byte of an image. It bounds the size of the answer, and trusts none of it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator

from .. import _types, chroot, user_namespace
from .._host import machine
from .._spec.command import Command
from .._spec.mount import Mount
from .._spec.policy import CAPABILITIES, Policy
from .._spec.spec import Spec
from .._values import check_flag, check_seconds, check_text
from ..errors import (
    ImageError,
    SetupError,
    SpecError,
    UnsupportedError,
    printable,
    setup_error,
)
from .child import documents, extract, roots, stored
from .child.accounts import LAST_ID
from .child.blobs import Refused
from .target import Existing, Target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._types import Path

    Way = tuple[Any, _types.UserName]

MAX_SIZE = 16 << 30  # bytes of content
MAX_MEMBERS = 1_000_000
TIMEOUT = 600.0  # seconds
MAX_ANSWER = 8 * documents.MAX_JSON  # bytes: a document in which each character may be escaped
MAX_ERROR = 2000  # characters of a message from the child
#: The child's capabilities: to make the target its root, and to write files of other owners.
_NEEDED = {"sys_chroot", "dac_override"}
_FOR_OWNERS = {"chown", "fowner", "fsetid", "setfcap"}
# Without it, an interpreter that was moved away from its libraries does not start.
_LOADER = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


class Request:
    """The checked arguments of a call; see load.unpack_oci_image."""

    def __init__(
        self,
        job: str,
        path: Path,
        *,
        ref: str | None = None,
        into: Path | None = None,
        max_size: int = MAX_SIZE,
        max_members: int = MAX_MEMBERS,
        timeout: float | None = TIMEOUT,
        keep_set_ids: bool = False,
        account: bool = False,
    ) -> None:
        for name, value in (("max_size", max_size), ("max_members", max_members)):
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise SpecError(f"{name} is no positive int: {value!r}")
        check_flag("keep_set_ids", keep_set_ids)
        self.path = check_text("the path of an image", path)
        self.into = None if into is None else check_text("into", into)
        if self.into == "":
            raise SpecError("into is empty")
        if timeout is not None and not check_seconds("timeout", timeout):
            raise SpecError("timeout is 0 seconds")
        self.timeout = timeout
        self.keep_set_ids = keep_set_ids
        self.name = printable(os.path.basename(self.path.rstrip("/")))
        self.settings: dict[str, Any] = {
            **{"job": job, "max_size": max_size, "max_members": max_members, "account": account},
            "ref": None if ref is None else check_text("ref", ref),
            "directory": job == "oci" and os.path.isdir(self.path),
        }


class Unpacked:
    """An unpacked image.

    path: its directory. value: its configuration or manifest. ids: the uid and gid of its command;
    None: 0 and 0. user: the value for Sandbox(user=) with which commands see the owners of the
    image's files as they were unpacked.
    """

    def __init__(
        self, path: str, value: dict[str, Any], ids: tuple[int, int] | None, user: _types.UserName
    ) -> None:
        self.path, self.value, self.ids, self.user = path, value, ids, user


@contextlib.contextmanager
def unpacked(request: Request) -> Iterator[Unpacked]:
    """Unpack an image, and remove it at the end unless the request has `into`."""
    child = Child(request)
    with contextlib.ExitStack() as undo:
        if not request.settings["directory"]:
            child.stdin = _open_archive(request.path)
            undo.callback(os.close, child.stdin)
        target = undo.enter_context(_target(request, child))
        keeps = request.keep_set_ids or target.is_private()
        child.settings |= {"owners": child.user != "root", "set_ids": keeps}
        child.settings["zstd"] = _zstandard()
        answer = child.run(target)
        target.publish()
        if not target.is_there():
            raise target.swapped()
        value = answer["value"]
        if not isinstance(value, dict):
            raise child.nonsense(value)
        yield Unpacked(target.path, value, _ids(child, answer["ids"]), child.user)


@contextlib.contextmanager
def _target(request: Request, child: Child) -> Iterator[Target]:
    """The directory to unpack to: `into`, or a new one in the caller's temporary directory."""
    with contextlib.ExitStack() as undo:
        if request.into is None:
            top = tempfile.gettempdir()
            name = f"sandboxlib-image-{os.urandom(8).hex()}"
            outer = undo.enter_context(_made(top, name, child))
            target = undo.enter_context(_made(outer, "rootfs", child))
            yield target
            return
        top, name = os.path.split(os.path.abspath(request.into))
        target = undo.enter_context(_made(top, name, child))
        yield target
        target.keep = True


@contextlib.contextmanager
def _made(parent: str | Target, name: str, child: Child) -> Iterator[Target]:
    """Make a directory, and remove it at the end unless Target.keep is set."""
    if isinstance(parent, Target):
        made = Target(parent.fd, name, os.path.join(parent.path, name))
    else:
        top = os.path.realpath(parent)
        fd = _open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, "target")
        try:
            made = Target(fd, name, os.path.join(top, name))
        finally:
            os.close(fd)
    try:
        yield made
    finally:
        try:
            if not made.keep:
                child.remove_target(made)
        finally:
            made.close()


class Child:
    """The program that unpacks, in its sandbox. Raises UnsupportedError if none can confine it."""

    def __init__(self, request: Request, way: Way | None = None) -> None:
        self._run, self.user = way or executor()
        self.lowers: list[str] = []  # layers that it sees, bottom first
        self._name, self._path = request.name, request.path
        self.settings = dict(request.settings)
        self._timeout = request.timeout
        self._end = None if request.timeout is None else time.monotonic() + request.timeout
        self.stdin: int | None = None
        self._foreign = False  # True: ids of /etc/subuid may own files of the target

    def run(self, target: Target | Existing | None) -> dict[str, Any]:
        """Run the job, and return the child's answer.

        Raises ImageError with the child's message; SetupError, also after the timeout.
        """
        self._foreign = self.user == "ranges"
        left = None if self._end is None else max(0.001, self._end - time.monotonic())
        answer = self._call(self.settings, target, left)
        if answer.keys() == {"moved"} and isinstance(target, Target):
            raise target.swapped()
        if answer.keys() == {"full"}:
            what = f"unpack {self._name}: {printable(str(answer['full'])[:MAX_ERROR])}"
            raise setup_error(errno.ENOSPC, self._path, "unpack", what, "make room on that disk")
        if answer.keys() == {"error"} and isinstance(answer["error"], str):
            raise ImageError(f"{self._name}: {printable(answer['error'][:MAX_ERROR])}")
        if answer.keys() != {"value", "ids"}:
            raise self.nonsense(answer)
        return answer

    def remove_target(self, target: Target) -> None:
        """Remove a target, within the timeout of the request, but at least a minute."""
        seconds = TIMEOUT if self._timeout is None else max(60.0, self._timeout)
        try:
            if self._foreign:
                self._foreign = False
                self.empty(target, seconds)
        finally:
            target.remove(seconds)

    def empty(self, target: Target | Existing, seconds: float) -> None:
        """Remove what is in a directory, within so many seconds."""
        self._call({"job": "empty"}, target, seconds)

    def _call(
        self, settings: dict[str, Any], target: Target | Existing | None, timeout: float | None
    ) -> dict[str, Any]:
        mounts = [Mount.dev("/dev")]
        if target is not None:
            settings = settings | {"target": target.identity}
            mounts.append(Mount.bind(target.path, roots.TARGET))
        for number, path in enumerate(self.lowers):
            mounts.append(Mount.bind(path, f"{stored.LOWER}{number}", read_only=True))
        if settings.get("directory"):
            mounts.append(Mount.bind(self._path, roots.SOURCE, read_only=True))
        box = Spec(
            "/",
            tmp="root",  # Python or this package may be installed below /tmp
            user=self.user,
            extra_mounts=mounts,
            policy=Policy(capabilities=_capabilities(self.user)),
        )
        argv = [sys.executable, "-I", "-S", "-B", extract.__file__, json.dumps(settings)]
        command = Command(
            argv,
            "/",
            env=_LOADER,
            stdin=self.stdin,
            timeout=timeout,
            max_output=MAX_ANSWER,
            on_overflow="kill",
        )
        try:
            result = self._run(box, command, True)
        except UnsupportedError as error:
            raise _uncontained(error) from error
        except SetupError:
            raise
        except OSError as error:
            raise setup_error(error.errno or 0, self._path, "unpack", "start the child") from error
        if result.timed_out:
            what = f"unpack {self._name}: not done after {self._timeout} seconds"
            hint = "timeout= gives it longer"
            raise setup_error(errno.ETIMEDOUT, self._path, "unpack", what, hint)
        return self._parsed(result)

    def _parsed(self, result: Any) -> dict[str, Any]:
        try:
            answer = json.loads(result.out or b"", parse_int=documents._integer)
        except (ValueError, RecursionError, Refused):
            answer = None
        if isinstance(answer, dict):
            return answer
        stderr = printable((result.err or b"")[-500:].decode(errors="backslashreplace"))
        text = f"the child that unpacks it ended with {result.exit}: {stderr}"
        raise ImageError(f"{self._name}: {text}")

    def nonsense(self, answer: object) -> ImageError:
        """The error for an answer that an honest child never gives."""
        text = printable(repr(answer)[:200])
        return ImageError(f"{self._name}: the child that unpacks it said {text}")


def _ids(child: Child, ids: Any) -> tuple[int, int] | None:
    if ids is None:
        return None
    if isinstance(ids, list) and len(ids) == 2 and all(type(each) is int for each in ids):
        uid, gid = ids
        if 0 <= uid <= LAST_ID and 0 <= gid <= LAST_ID:
            return uid, gid
    raise child.nonsense(ids)


def remove_foreign(path: str) -> int:
    """Remove what is in a directory of the caller's that ids of its ranges own. Returns 0: a child
    does it, whose count nobody trusts.
    """
    Child(Request("empty", path)).empty(Existing(path), TIMEOUT)
    return 0


def holds_image(path: Path) -> bool:
    """Return True if a file is a tar that holds an image. A child parses it."""
    request = Request("look", path)
    child = Child(request)
    child.stdin = _open_archive(request.path)
    try:
        value = child.run(None)["value"]
    finally:
        os.close(child.stdin)
    return value is True


def executor() -> Way:
    """The function that runs the child, and its user: (run_command, user). Raises UnsupportedError
    if this caller can confine no child.
    """
    if os.geteuid() == 0 and not chroot.EXECUTOR.why_not():
        return chroot.EXECUTOR.run_command, "caller"
    reason = user_namespace.EXECUTOR.why_not()
    if reason:
        raise _uncontained(reason)
    ranges = user_namespace.EXECUTOR.refusals(Spec("/", user="ranges"))
    return user_namespace.EXECUTOR.run_command, "root" if ranges else "ranges"


def _capabilities(user: str) -> list[str]:
    """The capabilities of the child. If the caller is root and lacks one, it is left out, and the
    kernel refuses the calls that need it.
    """
    needed = _NEEDED if user == "root" else _NEEDED | _FOR_OWNERS
    if user != "caller":  # the first process of a user namespace has every capability there
        return sorted(needed)
    have = int(machine.status("CapEff") or "0", 16)
    return sorted(name for name in needed if have >> CAPABILITIES.index(name) & 1)


def _uncontained(reason: object) -> UnsupportedError:
    return UnsupportedError(f"an image cannot be unpacked safely by this caller: {reason}")


def stack_directory() -> str:
    """The folder of the module that merges layers, which the child imports."""
    from .._changes.child import stack

    return os.path.dirname(os.path.abspath(stack.__file__))


def _zstandard() -> str | None:
    """The directory that the package zstandard is in; None if it is not installed."""
    try:
        spec = importlib.util.find_spec("zstandard")
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin:
        return None
    return os.path.dirname(os.path.dirname(spec.origin))


def _open(path: str, flags: int, step: str) -> int:
    try:
        return os.open(path, flags)
    except OSError as error:
        raise setup_error(error.errno or 0, path, step, f"open {path}") from error


def _open_archive(path: str) -> int:
    """Open the file that the caller names. Raises ImageError if it is no regular file."""
    fd = _open(path, documents.READ, "source")
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageError(f"{printable(path)} is no regular file")
    return fd


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turn the Refused of child.documents into an ImageError."""
    try:
        yield
    except Refused as error:
        raise ImageError(printable(str(error))) from None


def set_variable(env: dict[str, str], name: str, value: str) -> None:
    """Set a variable of an environment. Raises ImageError if the name is none."""
    if not name or "=" in name:
        raise ImageError(f"not a name of an environment variable: {name[:100]!r}")
    env[name] = value
