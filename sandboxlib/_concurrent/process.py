# SPDX-License-Identifier: Apache-2.0
"""Process, a command that runs while its caller does something else: Sandbox.start returns one."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import signal
from collections.abc import Callable
from threading import Condition, Thread, current_thread, main_thread
from time import monotonic
from typing import IO, Any
from weakref import ref

from .. import _values
from .._choice import choose
from .._core import native
from .._runs import extras, job, sinks
from .._runs.run import Run
from .._spec import streams
from .._spec.command import Command
from .._spec.spec import Spec
from .._spec.streams import is_capture
from ..errors import SandboxError, SpecTypeError, Unkillable, UnsupportedError
from ..result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

lib = native.lib


class Queue(_values.Output, sinks.Sink):
    """A captured output that the caller reads while the command runs."""

    def __init__(self) -> None:
        super().__init__(None)
        self._content = bytearray()

    def take(self, data: bytes) -> None:
        self._content += data

    def __len__(self) -> int:
        return len(self._content)

    def take_at_most(self, most: int) -> bytes:
        """Remove and return the next bytes: as many as there are, but at most `most`."""
        data = bytes(self._content[:most])
        del self._content[:most]
        return data

    def finish(self) -> bytes:
        """The bytes that were not read, for the Result. They stay, and can still be read."""
        return bytes(self._content)


class _Reader(io.RawIOBase):
    """An output of a Process, as a file."""

    def __init__(self, process: Process, queue: Queue) -> None:
        self._process = process
        self._queue = queue

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._process._until(lambda: bool(self._queue), None)
        data = self._queue.take_at_most(len(buffer))
        buffer[: len(data)] = data
        return len(data)


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
    returncode: int, as Result.exit; None while the command runs.
    result: Result, whose out and err hold the bytes that were not read; None while the command
        runs.
    stdin: a binary file to write to, with stdin=CAPTURE or a pty; otherwise None.
    stdout, stderr: a binary file to read from, if that output is captured; otherwise None.

    Every method that waits, wait() too, reads what the command writes meanwhile, so that the
    command never stops because a pipe is full. Any thread may call any method.

    Unlike Popen, a Process sends a signal to every process of the run. If a Process is garbage, or
    the caller ends, the run is killed.
    """

    stdin: IO[bytes] | None = None
    stdout: IO[bytes] | None = None
    stderr: IO[bytes] | None = None

    def __init__(self, run: Run, args: list[str], executor: str, began: float) -> None:
        self.args = args
        self.result: Result | None = None
        self._run = run
        self._began = began
        self._executor = executor
        self._error: SandboxError | None = None
        self._is_over = self._is_pumping = False
        self._changed = Condition()
        self._pidfd = -1
        self._gives_up = False  # True: a write to stdin that finds the pipe full fails at once
        self.pid: int = run.struct.pid

    @property
    def returncode(self) -> int | None:
        return None if self.result is None else self.result.exit

    def fileno(self) -> int:
        """A pidfd of the run's first process, for poll(2): it is readable once that has ended.

        close() closes it. Raises ValueError if the command has ended, and fileno() was not called
        before.
        """
        with self._changed:
            if self._pidfd < 0:
                if self._is_over:
                    raise ValueError("the command ended, and its pidfd is closed")
                self._pidfd = os.dup(self._run.struct.pidfd)
            return self._pidfd

    def poll(self) -> int | None:
        """Check whether the command has ended, without waiting, and return returncode. Raises as
        wait() does.
        """
        self._until(lambda: False, 0.0)
        return self._code()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the run, and return returncode.

        timeout: float, seconds. None (the default): no limit.

        Raises subprocess.TimeoutExpired after the timeout, and the command goes on; Unkillable if
        the run was killed, and the kernel does not end it; StatusLost if the exit status of the
        command was lost.
        """
        if not self._until(lambda: False, timeout):
            from subprocess import TimeoutExpired

            raise TimeoutExpired(self.args, timeout or 0.0)
        code = self._code()
        assert code is not None
        return code

    def communicate(
        self, input: bytes | None = None, timeout: float | None = None
    ) -> tuple[bytes | None, bytes | None]:
        """Write to stdin and close it, wait for the end, and return the outputs (stdout, stderr).

        input: bytes for stdin. None (the default): nothing is written.
        timeout: float, seconds; None (the default): no limit. After subprocess.TimeoutExpired,
            communicate() may be called again, and no output is lost.

        Each output is the bytes that were not read before, or None if it is not captured. Raises
        ValueError if there is input, and stdin is not captured or closed; otherwise as wait().
        """
        if self.stdin is not None and not self.stdin.closed:
            # In a thread, however short the input is: the pipe may be full already.
            Thread(target=self._write, args=(input or b"",), daemon=True).start()
        elif input:
            raise ValueError("stdin is not captured, or was closed")
        self.wait(timeout)
        return self._read_all(self.stdout), self._read_all(self.stderr)

    def send_signal(self, signum: int) -> None:
        """Send a signal to every process of the run. Does nothing if the run is over.

        signum: int, or a member of signal.Signals.

        With init=False and processes='isolated' the command is pid 1, and only the command gets the
        signal. The kernel then drops every signal that it does not handle, except SIGKILL and
        SIGSTOP.
        """
        with self._changed:
            if not self._is_over:
                lib.sbx_signal(self._run.struct, int(signum))

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

        rows, columns: int, in characters. Raises ValueError if there is no pty.
        """
        if not isinstance(self.stdin, _Terminal):
            raise ValueError("there is no pty")
        self.stdin.resize(rows, columns)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        """Wait for the end of the run. If an exception leaves the block, kill the run first. Raises
        Unkillable if the kernel does not end a run that was killed.
        """
        try:
            if kind is not None:
                self._gives_up = True
                self.kill()
            self._close_stdin()
            self._until(lambda: False, None)
        finally:
            # Raised below, unless another exception is on its way.
            with contextlib.suppress(Unkillable):
                self.close()
        if kind is None and self._run.unkillable is not None:
            raise self._run.unkillable

    def close(self) -> None:
        """Kill the run if it is not over, and close all files. Does nothing the second time. Raises
        Unkillable if the kernel does not end the run.
        """
        was_over = self._is_over
        with self._changed:
            if not self._is_over:
                self._end()
            pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)
        self._close_stdin()
        for file in (self.stdout, self.stderr):
            if file is not None:
                file.close()
        if not was_over and self._run.unkillable is not None:
            raise self._run.unkillable

    def __del__(self) -> None:
        if "_changed" in self.__dict__ and not self._is_over:
            self._end()
        if self.__dict__.get("_pidfd", -1) >= 0:
            os.close(self._pidfd)

    def __repr__(self) -> str:
        return f"<Process {self.pid} {self.args!r} returncode={self.returncode}>"

    # ---- the pump ----------------------------------------------------------------------------

    def _until(self, done: Callable[[], bool], timeout: float | None) -> bool:
        """Pump until done() or the end of the run; False if the timeout came first.

        One thread at a time pumps, and releases the lock meanwhile; the others wait until it has.
        """
        end = None if timeout is None else monotonic() + timeout
        with self._changed:
            while True:
                if done() or self._is_over:
                    return True
                left = 0.1 if end is None else min(0.1, end - monotonic())
                if self._is_pumping:
                    self._changed.wait(max(0.0, left))
                else:
                    self._pump(max(0, int(left * 1e9)))
                if end is not None and monotonic() >= end:
                    return done() or self._is_over

    def _pump(self, wait_ns: int) -> None:
        self._is_pumping = True
        try:
            self._changed.release()
            try:
                result = lib.sbx_pump(self._run.struct, wait_ns)
            finally:
                self._changed.acquire()
            self._follow(result)
        finally:
            self._is_pumping = False
            self._changed.notify_all()

    def _follow(self, result: int) -> None:
        if self._is_over:  # another thread closed the Process meanwhile
            return
        try:
            if not self._run.follow(result):
                return
            isolation = dict(self._run.plan.isolation)
            self.result = self._run.result(self._executor, self._began, isolation)
        except SandboxError as error:
            self._error = error
        except BaseException:
            self._end()
            raise
        self._end()

    def _end(self) -> None:
        """End the run, and release what it used."""
        self._is_over = True
        self._run.end()
        self._run.release()

    def _code(self) -> int | None:
        if self._error is not None:
            raise self._error
        return self.returncode

    # ---- files -------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        assert self.stdin is not None
        # The command closed its stdin, or another thread closed the Process.
        with contextlib.suppress(BrokenPipeError, ValueError):
            self.stdin.write(data)
            self.stdin.flush()
        self._close_stdin()

    def _close_stdin(self) -> None:
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.stdin.close()

    def _read_all(self, file: IO[bytes] | None) -> bytes | None:
        return None if file is None else file.read()

    def _refuse_without_reaper(self) -> None:
        box = self._run.plan.box
        if box.processes == "isolated" and not box.init:
            raise UnsupportedError("init=False: there is no reaper to stop the others")


class _Input(io.FileIO):
    """The caller's end of stdin. The descriptor does not block: a write waits for room by poll(2),
    and raises BrokenPipeError once the run is over, even if another process has the pipe open.
    """

    def __init__(self, fd: int, process: Process) -> None:
        super().__init__(fd, "wb")
        os.set_blocking(fd, False)
        self._process = ref(process)

    def write(self, data: Any) -> int:
        while (written := super().write(data)) is None:
            process = self._process()
            if process is None or process._is_over or process._gives_up:
                raise BrokenPipeError(errno.EPIPE, "the command ended, and did not read it")
            poll = select.poll()
            poll.register(self.fileno(), select.POLLOUT)
            poll.poll(100)  # milliseconds; then check again whether the run is over
        return written


class _Terminal(_Input):
    """The caller's end of a pty, to write to."""

    def resize(self, rows: int, columns: int) -> None:
        extras.set_window(self.fileno(), rows, columns)


def check_startable(call: str, command: Command) -> None:
    """Raise SpecTypeError if a Command has options that a Process cannot keep. Only methods of the
    Process pump its run, and the caller may call none for a long time.
    """
    for name in ("timeout", "grace"):
        if getattr(command, name):
            text = "Process.wait(timeout), terminate() and kill() do that"
            raise SpecTypeError(f"{call} takes no {name}: {text}")
    if command.max_output is not None:
        raise SpecTypeError(f"{call} takes no max_output: read as much as you like")
    for name in ("stdout", "stderr"):
        if isinstance(getattr(command, name), (streams.Lines, streams.Tee)):
            text = "read Process.stdout and .stderr, which are files"
            raise SpecTypeError(f"{call} takes neither Lines nor Tee: {text}")


def start(box: Spec, command: Command) -> Process:
    """Start a Command, and return its Process; see Sandbox.start."""
    began = monotonic()
    check_startable("start", command)
    box = box._for(command)
    executor = choose.native_executor_of(box)
    plan = executor.plan_of(box)
    outputs = [Queue() if is_capture(v) else v for v in (command.stdout, command.stderr)]
    if command.pty:
        outputs[1] = command.stderr
    pipe = os.pipe() if is_capture(command.stdin) else (-1, -1)
    try:
        stdio = (pipe[0] if pipe[0] >= 0 else command.stdin, outputs[0], outputs[1])
        run = Run(plan, job.job_of(command, box), command, stdio, announce=True)
        process = _begin(run, list(command.argv), executor.name, began)
    except BaseException:
        if pipe[1] >= 0:
            os.close(pipe[1])
        raise
    finally:
        if pipe[0] >= 0:
            os.close(pipe[0])
    if pipe[1] >= 0:
        process.stdin = io.BufferedWriter(_Input(pipe[1], process))
    elif command.pty:
        process.stdin = _Terminal(os.dup(run.struct.out.fd), process)
    for name, queue in zip(("stdout", "stderr"), outputs, strict=True):
        if isinstance(queue, Queue):
            setattr(process, name, io.BufferedReader(_Reader(process, queue)))
    return process


def _begin(run: Run, args: list[str], executor: str, began: float) -> Process:
    try:
        if run.plan.reaper or current_thread() is main_thread():
            run.start(fresh=True)
        else:
            _start_in_keeper(run)
        return Process(run, args, executor, began)
    except BaseException:
        run.end()
        run.release()
        raise


# ---- threads that end --------------------------------------------------------------------------

_keeper: ThreadPoolExecutor | None = None


def _start_in_keeper(run: Run) -> None:
    """Start a run in a thread that lives as long as the process. Without a reaper the kernel kills
    the command when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG).
    """
    global _keeper  # noqa: PLW0603
    from concurrent.futures import ThreadPoolExecutor, wait

    if _keeper is None:
        _keeper = ThreadPoolExecutor(1, "sandboxlib-keeper")
    future = _keeper.submit(run.start, True)
    try:
        future.result()
    except BaseException:
        if not future.cancel():
            wait([future])
        raise


def _forget_keeper() -> None:
    global _keeper  # noqa: PLW0603
    _keeper = None


os.register_at_fork(after_in_child=_forget_keeper)
