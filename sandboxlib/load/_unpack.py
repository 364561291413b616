# SPDX-License-Identifier: Apache-2.0
"""The parent's side of unpacking: a directory, the child in its sandbox, checked JSON."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from .. import _native, chroot, user_namespace
from ..errors import ImageError, SandboxError, SpecError, UnsupportedError
from ..sandbox import Sandbox
from . import _extract

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..sandbox import Path

MAX_SIZE = 16 << 30  # bytes of content
MAX_MEMBERS = 1_000_000
MAX_JSON = _extract.MAX_JSON
# Without it an interpreter that is not where its libraries were meant to be does not start.
_LOADER = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


class Target:
    """A directory that archives are unpacked into, one over the other.

    user: the word of Sandbox for commands that are to see the owners as they were unpacked.
    """

    def __init__(self, path: str, max_size: int, max_members: int) -> None:
        for name, value in (("max_size", max_size), ("max_members", max_members)):
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise SpecError(f"{name} is no positive int: {value!r}")
        self.path = path
        self.keep = False
        self._limits = {"max_size": max_size, "max_members": max_members}
        self._run_in, self.user = executor()

    def extract(
        self,
        archive: int,
        what: str,
        *,
        length: int | None = None,
        digest: str = "",
        diff_id: str = "",
        prefix: str = "",
    ) -> bytes | None:
        """Unpacks an archive from its descriptor: `length` bytes, or all that there is.

        prefix: the directory that is meant; then what the archive has as `manifest` is returned.
        """
        told = self._child(
            archive,
            {
                **self._limits,
                **{"length": length, "digest": digest, "diff_id": diff_id, "prefix": prefix},
                "whiteouts": not prefix,
                "owners": self.user != "root",  # then there is one owner: the caller
                "zstd": _zstandard(archive, what),
            },
        )
        if "error" in told:
            raise ImageError(f"{what}: {told['error']}")
        self._limits = {name: told[name] for name in self._limits}
        manifest: str | None = told["manifest"]
        return None if manifest is None else manifest.encode("latin-1")

    def remove(self) -> None:
        """Takes it away with all that is in it."""
        if self.user == "ranges":  # ids of the caller's ranges own some of it
            self._child(None, {"empty": True})
        fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.geteuid() != 0:
                os.chmod(f"/proc/self/fd/{fd}", 0o700)
            _extract.empty(fd)
        finally:
            os.close(fd)
        os.rmdir(self.path)

    def _child(self, archive: int | None, words: dict[str, Any]) -> dict[str, Any]:
        settings = {"target": os.fsencode(self.path).decode("latin-1"), "empty": False, **words}
        box = Sandbox(
            "/", network="isolated", filesystem_writable_paths=[self.path], user=self.user
        )
        argv = [sys.executable, "-I", "-S", "-B", _extract.__file__, json.dumps(settings)]
        try:
            result = self._run_in(box, argv, "/", _LOADER, archive)
        except (SandboxError, OSError) as error:
            raise _uncontained(error) from error
        try:
            told: dict[str, Any] = json.loads(result.out or b"")
        except ValueError:
            said = (result.err or b"")[-500:].decode(errors="backslashreplace")
            told = {"error": f"the child that unpacks it ended with {result.exit}: {said}"}
        return told


def executor() -> tuple[Any, str]:
    """What confines the child, and as whom it runs: (run_in, user). UnsupportedError."""
    if os.geteuid() == 0 and not chroot.why_not():
        return chroot.run_in, "caller"
    reason = user_namespace.why_not()
    if reason:
        raise _uncontained(reason)
    ranges = user_namespace.refusals(Sandbox("/", user="ranges"))
    return user_namespace.run_in, "root" if ranges else "ranges"


def _uncontained(reason: object) -> UnsupportedError:
    return UnsupportedError(f"an image cannot be unpacked safely by this caller: {reason}")


def _zstandard(archive: int, what: str) -> str | None:
    """Where the package zstandard is, if the archive takes it. ImageError where it is missing."""
    if os.pread(archive, 4, os.lseek(archive, 0, os.SEEK_CUR)) != _extract.ZSTD:
        return None
    found = importlib.util.find_spec("zstandard")
    if found is None or not found.origin:
        raise ImageError(f"{what}: it is compressed by zstd: install sandboxlib[zstd]")
    return os.path.dirname(os.path.dirname(found.origin))


@contextlib.contextmanager
def target(max_size: int, max_members: int, into: Path | None = None) -> Iterator[Target]:
    """A Target in a temporary directory, or one that is made at `into`. It is gone at the end,
    unless its `keep` was set.
    """
    place = tempfile.mkdtemp(prefix="sandboxlib-image-") if into is None else None
    try:
        path = os.path.realpath(into if into is not None else os.path.join(place or "", "rootfs"))
        made = Target(path, max_size, max_members)
        os.mkdir(path)
        try:
            os.chmod(path, 0o755)
            yield made
        finally:
            if not made.keep:
                made.remove()
    finally:
        if place is not None:
            with contextlib.suppress(OSError):  # made.remove() has said why
                os.rmdir(place)


# ---- files of hostile origin -----------------------------------------------------------------


_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # a FIFO would block


def open_archive(path: Path) -> int:
    """The file that the caller names. ImageError where it is no regular one."""
    return _regular(os.open(path, _READ), os.fspath(path))


def open_file(directory: str, name: str) -> int:
    """A regular file below a directory, which no link leads out of. ImageError."""
    try:
        root = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = _native.open_in_root(root, name, _READ)
        finally:
            os.close(root)
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror}") from error
    return _regular(fd, name)


def _regular(fd: int, name: str) -> int:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageError(f"{name} is no regular file")
    return fd


def read_file(fd: int, size: int, what: str) -> bytes:
    """The next `size` bytes of a file. ImageError where they are too many, or are not there."""
    if size > MAX_JSON:
        raise ImageError(f"{what} is longer than {MAX_JSON} bytes")
    data = b""
    while len(data) < size and (more := os.read(fd, size - len(data))):
        data += more
    if len(data) < size:
        raise ImageError(f"{what} is truncated")
    return data


def parse_json(data: bytes, what: str) -> Any:
    """ImageError where it is none, or says the same thing twice."""
    try:
        return json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        said = error if isinstance(error, ImageError) else type(error).__name__
        raise ImageError(f"{what} is no JSON: {said}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ImageError(f"the key {key[:100]!r} is there twice")
        found[key] = value
    return found


def checked(value: Any, kind: type, what: str) -> Any:
    """The value, if it is of that type. ImageError."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ImageError(f"{what} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def set_variable(env: dict[str, str], name: str, value: str) -> None:
    """One more variable of an environment. ImageError."""
    if not name or "=" in name:
        raise ImageError(f"not a name of an environment variable: {name[:100]!r}")
    env[name] = value


def strings(value: Any, what: str) -> list[str]:
    """A list of str that a command can be given; None is an empty one. ImageError."""
    found = checked([] if value is None else value, list, what)
    for each in found:
        try:
            os.fsencode(checked(each, str, f"a word of {what}"))
        except UnicodeEncodeError:
            raise ImageError(f"a word of {what} cannot be encoded: {each!r}") from None
        if "\0" in each:
            raise ImageError(f"a word of {what} contains a NUL byte: {each!r}")
    return list(found)
