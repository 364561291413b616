# SPDX-License-Identifier: Apache-2.0
"""What a Server identifies itself and its peer with: a file with a token, and files with keys."""

from __future__ import annotations

import errno
import os
import stat
import threading

from .. import _types
from .._values import check_path, short
from ..errors import SpecError, SpecTypeError

LARGEST_TOKEN = 64 << 10  # bytes; more than the header of a call can carry
LARGEST_PEM = 16 << 20  # bytes; the roots of a system take 250 KB


def read_small(path: str, most: int) -> tuple[bytes, os.stat_result]:
    """The content and the state of a regular file of at most `most` bytes; OSError otherwise.

    A FIFO or a device in its place would block us: it is opened without waiting, and refused.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with open(fd, "rb") as file:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "this is no regular file", path)
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"the file has more than {most} bytes", path)
    return content, state


def check_pem(what: str, path: _types.Path | None) -> bytes | None:
    """The content of a PEM file; SpecError if it cannot be read."""
    if path is None:
        return None
    name = check_path(what, path)
    try:
        content, _ = read_small(name, LARGEST_PEM)
    except OSError as error:
        raise SpecError(f"{what} cannot be read: {error}") from None
    if b"-----BEGIN " not in content:
        raise SpecError(f"{what} is no PEM file: {name!r}")
    return content


def system_roots() -> bytes | None:
    """The certificates that OpenSSL trusts on this machine; None if they are not in one file, or if
    gRPC's own variable names another.
    """
    import ssl

    path = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    if "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH" in os.environ:
        return None
    try:
        return read_small(path, LARGEST_PEM)[0] or None
    except OSError:
        return None


class Token:
    """The token in a file, which is read again when the file is another, or has changed."""

    def __init__(self, path: object) -> None:
        if not isinstance(path, os.PathLike):
            text = f"token is a {type(path).__name__}, not the path of a file"
            raise SpecTypeError(f"{text}; write token=pathlib.Path(...) of a file that has it")
        self._path = os.path.abspath(check_path("token", path))
        self._lock = threading.Lock()
        self._mark: tuple[int, ...] = ()
        self._text = ""
        try:
            self.read()
        except OSError as error:
            raise SpecError(f"token cannot be read: {error}") from None

    def renew(self) -> None:
        """In the child of a fork: the lock may be held by a thread that only the parent has."""
        self._lock = threading.Lock()

    def read(self) -> str:
        """The token of now. OSError if the file cannot be read; SpecError if it has no token, or if
        others may read it.
        """
        with self._lock:
            if not self._mark or _mark(os.stat(self._path)) != self._mark:
                content, state = read_small(self._path, LARGEST_TOKEN)
                _check_private(self._path, state)
                self._text, self._mark = _checked(self._path, content), _mark(state)
            return self._text


def _mark(state: os.stat_result) -> tuple[int, ...]:
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def _check_private(path: str, state: os.stat_result) -> None:
    """SpecError if others may read or write the file, as ssh refuses such a key. The group of one
    of root's may read it: so root gives a token to some users, and systemd to a service.
    """
    allowed = stat.S_IRGRP if state.st_uid == 0 else 0
    if state.st_mode & 0o077 & ~allowed:
        mode = f"{stat.S_IMODE(state.st_mode):04o}"
        text = (
            f"token is the file {short(path)} of mode {mode}, which other users can read or write"
        )
        raise SpecError(f"{text}: chmod {'640' if allowed else '600'}")


def _checked(path: str, content: bytes) -> str:
    """The text of a token, which a header can carry. The error does not show it."""
    words = content.split()
    text = words[0].decode("ascii", "replace") if len(words) == 1 else ""
    if not text or not text.isascii() or not text.isprintable():
        raise SpecError(f"token is the file {short(path)}, which has no single word of ASCII in it")
    return text
