# SPDX-License-Identifier: Apache-2.0
"""The streams of the command: those of this program, or files whose contents go to casd."""

from __future__ import annotations

import os
from _thread import allocate_lock, start_new_thread

from .. import _reapi, chroot
from .._spec.command import Command
from .._spec.spec import Spec
from ..result import Result
from .casd import Casd
from .options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .._executors.base import NativeExecutor

_CHUNK = 1 << 18
_NAMES = {"stdout-file": 6, "stderr-file": 8}  # with the fields of ActionResult


def executor() -> NativeExecutor:
    """The executor for this caller. It is not tried before: a trial takes as long as a run, and a
    place that cannot be made is an error of the run.
    """
    if os.geteuid() == 0:
        return chroot.EXECUTOR
    from ..user_namespace import EXECUTOR

    return EXECUTOR


class Streams:
    """A context manager.

    stdout, stderr: descriptors, where the command writes.
    """

    def __init__(self, options: Options, casd: Casd) -> None:
        self._options, self._casd = options, casd
        self.stdout, self.stderr = 1, 2
        self._files: dict[int, int] = {}

    def __enter__(self) -> Streams:
        if "no-logs-capture" not in self._options:
            for name, number in _NAMES.items():
                self._files[number] = _file(self._options.get(name))
            self.stdout, self.stderr = self._files[6], self._files[8]
        return self

    def __exit__(self, *error: object) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def run(self, box: Spec, argv: list[bytes], **options: Any) -> Result:
        """Runs the command. Casd is answered meanwhile. The errors of Sandbox.run()."""
        options["changes"] = "keep"
        if os.isatty(0):
            from .._cli import terminal
            from ..api import Sandbox

            assert isinstance(box, Sandbox)

            return terminal.run(box, Command(argv, **options))
        stop, other = os.pipe2(os.O_CLOEXEC)
        is_over = allocate_lock()
        is_over.acquire()

        def serve() -> None:
            try:
                self._casd.serve(stop)
            finally:
                is_over.release()

        start_new_thread(serve, ())
        try:
            made = Command(argv, stdin=0, stdout=self.stdout, stderr=self.stderr, **options)
            return executor().run_command(box, made)
        finally:
            os.close(other)
            is_over.acquire()
            os.close(stop)

    def upload(self) -> Iterator[tuple[int, str]]:
        """Sends what was captured. Yields (the field of an ActionResult, a digest)."""
        contents: dict[str, bytes | str] = {}
        for number, fd in self._files.items():
            hash, size = _reapi.sha256(os.fstat(fd).st_size), 0
            while data := os.pread(fd, _CHUNK, size):
                hash.update(data)
                size += len(data)
            digest = f"{hash.hexdigest()}/{size}"
            contents[digest] = f"/proc/self/fd/{fd}"
            yield number, digest
        if contents:
            self._casd.upload(contents)


def _file(path: str) -> int:
    """A new file. path: ""; it has no name."""
    if path:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    directory = os.environ.get("TMPDIR") or "/tmp"
    try:
        return os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError:  # a file system without O_TMPFILE
        from tempfile import TemporaryFile

        with TemporaryFile() as file:
            return os.dup(file.fileno())
