# SPDX-License-Identifier: Apache-2.0
"""Process, a command that runs while its caller does something else: Sandbox.start returns one."""

from __future__ import annotations

import contextlib
import os
import posix  # its close(): see _core/unpatched.py
import signal
from time import monotonic
from typing import IO, Any, NoReturn

from .._runs import extras
from .._runs.run import LONGEST_WAIT
from .._runs.running import Running
from .._runs.session import OpenSession, RunInSession, RunningInSession
from .._spec import streams
from .._spec.command import Command
from .._spec.spec import Spec
from .._spec.streams import is_capture
from ..errors import SpecTypeError, Unkillable, UnsupportedError
from ..result import Result
from . import communicate, keeper, native_run, pipes

MOST_OF_A_SERVICE = 5.0  # seconds from SIGTERM to SIGKILL


class Process:
    """A command that runs in new namespaces; Sandbox.start makes one. It resembles
    subprocess.Popen:

        with box.start(["make"], stdout=CAPTURE) as process:
            for line in process.stdout:
                ...
        process.returncode

    args: list of str, Command.argv.
    pid: int, the pid of the run's first process as the caller sees it. With a reaper that is the
        reaper. Do not send signals to it, which would miss the other processes: see send_signal().
    stdin: a binary file to write to, with stdin=CAPTURE or a pty; otherwise None.
    stdout, stderr: a binary file to read from, if that output is captured; otherwise None.

    The files are those of a Popen: each is one end of a pipe, and nobody reads or writes there but
    the caller. A command that fills a pipe waits until the caller reads; if the caller closes the
    file, the command gets SIGPIPE.

    Any thread may call any method at any time, also after close() or an error. So may a signal
    handler, whatever it interrupts, but for communicate() and the files.

    Unlike Popen, a Process sends a signal to every process of the run. If a Process and its files
    are garbage, or the caller ends, the run is killed. A fork of the caller does not end it. A
    Process cannot be copied or pickled: TypeError.
    """

    # The annotations leave out None: who asks for a pipe has it, and need not look.
    stdin: IO[bytes] = None  # type: ignore[assignment]
    stdout: IO[bytes] = None  # type: ignore[assignment]
    stderr: IO[bytes] = None  # type: ignore[assignment]

    def __init__(self, args: list[str], run: Running, has_reaper: bool) -> None:
        self.args = args
        self.pid: int = run.handle.pid
        self._run = run
        self._has_reaper = has_reaper
        self._exchange: communicate.Exchange | None = None
        self._pidfds: dict[int, int] = {}  # the one at 0 is that of fileno()

    @property
    def returncode(self) -> int | None:
        """As Result.exit. None as long as the command runs and no method noticed its end, or if the
        exit status was lost.
        """
        try:
            return self._run.exit_status()
        except Exception:  # poll() and wait() raise it
            return None

    def fileno(self) -> int:
        """A pidfd of the run's first process, for poll(2): it is readable once that has ended.

        close() closes it. Raises ValueError if the command has ended, and fileno() was not called
        before.
        """
        if 0 not in self._pidfds:
            try:
                pidfd = self._run.handle.pidfd()
            except ProcessLookupError:
                raise ValueError("the command ended, and its pidfd is closed") from None
            if self._pidfds.setdefault(0, pidfd) != pidfd:  # another thread was faster
                os.close(pidfd)
        return self._pidfds[0]

    def poll(self) -> int | None:
        """Check whether the command has ended, without waiting, and return returncode. Raises as
        wait() does.
        """
        self._run.wait(0)
        return self._run.exit_status()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the run, and return returncode.

        timeout: float, seconds. None (the default): no limit.

        As with Popen, a command that fills a pipe which nobody reads never ends: use communicate(),
        or read first.

        Raises subprocess.TimeoutExpired after the timeout, and the command goes on; Unkillable if
        the run was killed, and the kernel does not end it; StatusLost if the exit status of the
        command was lost, as it is in a fork of the caller.
        """
        if not self._wait(timeout):
            from subprocess import TimeoutExpired

            raise TimeoutExpired(self.args, timeout or 0.0)
        code = self._run.exit_status()
        assert code is not None
        return code

    def result(self) -> Result:
        """Wait for the end of the run, and return its Result: usage, limits_hit, wall and the rest.
        out and err are what communicate() has read; None without it, because then the caller reads
        the files.

        Raises as wait() does.
        """
        self.wait()
        outputs = (None, None) if self._exchange is None else self._exchange.outputs()
        return self._run.result(*outputs)

    def communicate(
        self, input: bytes | None = None, timeout: float | None = None
    ) -> tuple[bytes | None, bytes | None]:
        """Write to stdin and close it, read the outputs, wait for the end, and return the outputs
        (stdout, stderr).

        input: bytes for stdin. None (the default): nothing is written.
        timeout: float, seconds; None (the default): no limit. After subprocess.TimeoutExpired,
            communicate() may be called again, without input: it goes on with what is left of it,
            and returns all output.

        Each output is the bytes that were not read before, or None if it is not captured. When the
        run is over, what the pipes hold at that moment is the end of the outputs, even if a process
        elsewhere still has a pipe open.

        Raises ValueError if there is input, and stdin is not captured or closed, or communicate()
        was called before; otherwise as wait().
        """
        pipes.check_input(input)
        if self._exchange is None:
            self._exchange = communicate.Exchange(self, input)
        elif input:
            raise ValueError("communicate() was called before: the input was given then")
        self._exchange.go_on(timeout)
        return self._exchange.outputs()

    def send_signal(self, signum: int) -> None:
        """Send a signal to every process of the run. Does nothing if the run is over.

        signum: int, or a member of signal.Signals.

        With init=False and processes='isolated' the command is pid 1, and only the command gets the
        signal. The kernel then drops every signal that it does not handle, except SIGKILL and
        SIGSTOP.
        """
        self._run.handle.signal(int(signum))

    def terminate(self) -> None:
        """Send SIGTERM to every process of the run; see send_signal()."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to every process of the run."""
        self.send_signal(signal.SIGKILL)

    def suspend(self) -> None:
        """Stop every process of the run by SIGSTOP, until resume().

        Raises UnsupportedError with init=False and processes='isolated', because the signal would
        stop pid 1 alone.
        """
        self._refuse_without_reaper()
        self.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the processes that suspend() stopped go on (SIGCONT). Raises as suspend() does."""
        self._refuse_without_reaper()
        self.send_signal(signal.SIGCONT)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the command's terminal; the command gets SIGWINCH.

        rows, columns: int, in characters. Raises ValueError if there is no pty, or it was closed.
        """
        if not isinstance(self.stdin, pipes.Terminal):
            raise ValueError("there is no pty")
        extras.set_window(self.stdin.fileno(), rows, columns)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        """Close the files, as Popen does, and wait for the end of the run. If an exception leaves
        the block, kill the run first.

        In a session a command may be a service, which does not end by itself: unless it has closed
        its outputs, it gets SIGTERM here, and SIGKILL if it has not ended five seconds later.

        Raises Unkillable if the kernel does not end a run that was killed.
        """
        try:
            if kind is None and not self._run.is_foreign:
                is_service = self._is_service()
                self._close_files(pipes.close)
                if is_service:
                    self.terminate()
                    if not self._wait(MOST_OF_A_SERVICE):
                        self.kill()
                self._wait(None)
        finally:
            # Raised above, unless another exception is on its way.
            with contextlib.suppress(Unkillable):
                self.close()

    def close(self) -> None:
        """Kill the run if it is not over, and close all files. Does nothing the second time. In a
        fork of the caller it closes the files only. Raises Unkillable if the kernel does not end
        the run.
        """
        was_over = self._run.handle.is_over
        unkillable = self._run.end()
        self._close_files(pipes.abandon if self._run.is_foreign else pipes.drop)
        if (pidfd := self._pidfds.pop(0, -1)) >= 0:
            os.close(pidfd)
        if not was_over and unkillable is not None:
            raise unkillable

    def __del__(self) -> None:
        if pidfds := self.__dict__.get("_pidfds"):
            os.close(pidfds.pop(0))

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Process cannot be copied or pickled: it is a command that runs")

    def __repr__(self) -> str:
        return f"<Process {self.pid} {self.args!r} returncode={self.returncode}>"

    def _is_service(self) -> bool:
        """Whether the command may go on for ever. One that has closed its outputs is about to end,
        like most commands whose outputs were read.
        """
        if not self._run.is_service or self._run.wait(0):
            return False
        outputs = (self.stdout, self.stderr)
        return not pipes.are_over(
            [f.fileno() for f in outputs if f is not None and pipes.is_open(f)]
        )

    def _wait(self, timeout: float | None) -> bool:
        """Wait for the end of the run; False if the timeout came first. Raises Unkillable."""
        end = None if timeout is None else monotonic() + timeout
        while True:
            left = LONGEST_WAIT if end is None else int((end - monotonic()) * 1e9)
            if self._run.wait(max(0, min(LONGEST_WAIT, left))):
                return True
            if left <= 0:
                return False

    def _close_files(self, close: Any) -> None:
        for file in (self.stdout, self.stderr, self.stdin):
            if file is not None:
                close(file)

    def _refuse_without_reaper(self) -> None:
        if not self._has_reaper:
            raise UnsupportedError("init=False: there is no reaper to stop the others")


def check_startable(call: str, command: Command) -> None:
    """Raise SpecTypeError if a Command has options that need somebody who reads the outputs at all
    times. Nobody does for a Process: it has the files instead.
    """
    for name in ("timeout", "grace"):
        if getattr(command, name):
            text = "Process.wait(timeout), terminate() and kill() do that"
            raise SpecTypeError(f"{call} takes no {name}: {text}")
    if command.max_output is not None:
        raise SpecTypeError(f"{call} takes no max_output: read as much as you like")
    for name in ("stdout", "stderr"):
        if streams.is_sink(getattr(command, name)):
            text = f"read Process.{name}, which is a file, or use run(), which calls and copies"
            raise SpecTypeError(f"{call} takes no function, Lines or Tee as {name}: {text}")


def start(box: Spec | OpenSession, command: Command) -> Process:
    """Start a Command, and return its Process; see Sandbox.start and Session.start."""
    began = monotonic()
    check_startable("start", command)
    reader, stdin = pipes.make() if is_capture(command.stdin) else (-1, None)
    try:
        stdio = (reader if stdin else command.stdin, command.stdout, command.stderr)
        run, executor = native_run.make(box, command, stdio=stdio, announce=True)
        has_reaper = run.plan.box.init or run.plan.box.processes != "isolated"
        try:
            keeper.start(run)
            if isinstance(run, RunInSession):
                running: Running = RunningInSession(run, executor, began)
            else:
                running = Running(run, executor, began)
        finally:
            run.end()
            run.release()
    except BaseException:
        if stdin is not None:
            stdin.close()
        raise
    finally:
        if reader >= 0:
            posix.close(reader)
    process = Process(list(command.argv), running, has_reaper)
    pipes.give(process, running, stdin, bool(command.pty))
    return process
