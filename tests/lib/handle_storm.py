# SPDX-License-Identifier: Apache-2.0
"""Threads, signal handlers and forks of the caller use a Process at the same time, in all ways,
while other threads run commands whose results are known.

    python -m lib.handle_storm ROOT ROUNDS [SEED]      exit status 1 if anything was wrong

Each round starts a command, which writes only its own mark, and lets some actors loose on it.
Nothing may happen to another run, nothing may hang, and afterwards the Process knows its end.
"""

from __future__ import annotations

import collections
import copy
import errno
import faulthandler
import gc
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

from sandboxlib import CAPTURE, Process, Sandbox

LONGEST = 60.0  # seconds that a round may take on any machine
MODES: dict[str, dict[str, Any]] = {
    "reaper": {},
    "init=False": {"init": False},
    "processes=undefined": {"processes": "undefined"},
}
COMMANDS = {
    "endless": "while :; do echo {mark}; done",
    "quiet": "exec sleep 600",
    "short": "echo {mark}; exit 3",
    "at once": "exit 3",
    "echo": "cat",
    "closed": "exec >&- 2>&-; exec sleep 600",
}
#: What another thread may cause: it closed the file, or the command is dead.
EXPECTED = (ValueError, BrokenPipeError, subprocess.TimeoutExpired)
Actor = Callable[[Process, bytes], None]
wrong: collections.Counter[str] = collections.Counter()


# ---- what actors do ----------------------------------------------------------------------------


def read(process: Process, mark: bytes) -> None:
    check_mark(process.stdout.read(), mark)  # type: ignore[union-attr]


def read_lines(process: Process, mark: bytes) -> None:
    for n, line in enumerate(process.stdout):  # type: ignore[arg-type]
        check_mark(line, mark)
        if n == 50:
            break


def write(process: Process, mark: bytes) -> None:
    for _ in range(20):
        process.stdin.write(mark * 1000)  # type: ignore[union-attr]


def communicate(process: Process, mark: bytes) -> None:
    check_mark(process.communicate(timeout=0.01 * random.random())[0] or b"", mark)


def communicate_input(process: Process, mark: bytes) -> None:
    check_mark(process.communicate(mark * 20000, timeout=0.05)[0] or b"", mark)


def poll(process: Process, mark: bytes) -> None:
    for _ in range(50):
        if process.poll() is not None:
            break


def wait(process: Process, mark: bytes) -> None:
    process.wait(0.02 * random.random())


def watch(process: Process, mark: bytes) -> None:
    poll = select.poll()
    poll.register(process.fileno(), select.POLLIN)
    poll.poll(2)


def look(process: Process, mark: bytes) -> None:
    assert process.returncode in (None, 3, 0, 1, 2, -9, -15, -13)
    assert "Process" in repr(process)


def make_copy(process: Process, mark: bytes) -> None:
    for way in (copy.copy, copy.deepcopy):
        try:
            way(process)
        except TypeError:
            continue
        raise AssertionError("it was copied")


def fork(process: Process, mark: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(LONGEST))
        try:
            process.close()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"a fork ends with {status}"


def end_soon(end: Callable[[Process], None]) -> Callable[[Process, bytes], None]:
    def act(process: Process, mark: bytes) -> None:
        time.sleep(0.004 * random.random())
        end(process)

    return act


def leave(process: Process) -> None:
    try:
        with process:
            raise KeyError
    except KeyError:
        pass


INTERRUPTED = [read, read_lines, write, communicate, communicate_input, poll, wait]
BUFFERED = {read, read_lines, write}
ACTORS: list[Actor] = [
    *(read, read_lines, write, communicate, communicate_input, poll, wait, watch, look, make_copy),
    *(end_soon(Process.kill), end_soon(Process.terminate), end_soon(Process.close)),
    *(end_soon(Process.close), end_soon(leave)),
]


def check_mark(data: bytes, mark: bytes) -> None:
    """Everything is the mark again and again. Several readers may have divided it."""
    rest = data.replace(mark, b"").replace(b"\n", b"")
    if len(rest) > 8 * len(mark) or not set(rest) <= set(mark):
        raise AssertionError(f"this is not {mark!r}: {data[:60]!r}")


# ---- rounds ------------------------------------------------------------------------------------


def guarded(what: str, act: Callable[[], object]) -> None:
    try:
        act()
    except EXPECTED:
        pass
    except BaseException as error:
        if is_busy(error):
            return
        wrong[f"{what}: {error!r}"] += 1


def one_round(boxes: dict[str, Sandbox], number: int, chance: random.Random) -> None:
    mode, kind = chance.choice(list(boxes)), chance.choice(list(COMMANDS))
    mark = b"mark%d" % number
    script = COMMANDS[kind].format(mark=mark.decode())
    try:
        process = boxes[mode].start(["sh", "-c", script], stdin=CAPTURE)
    except OSError as error:
        if is_busy(error):
            return
        raise
    actors = [chance.choice(ACTORS) for _ in range(chance.randint(1, 4))]
    if number % 7 == 0:
        actors.append(fork)
    names = f"{mode}, {kind}, {[actor.__name__ for actor in actors]}"
    threads = [
        threading.Thread(
            target=guarded, args=(f"{names}: {actor.__name__}", lambda a=actor: a(process, mark))
        )
        for actor in actors
    ]
    for thread in list(threads):
        try:
            thread.start()
        except RuntimeError:  # can't start new thread
            threads.remove(thread)
    if number % 3 == 0:
        # A thread that waits for the lock of a buffer, which another one holds, handles no signal.
        free = [each for each in INTERRUPTED if each not in BUFFERED or not BUFFERED & {*actors}]
        act = chance.choice(free)
        guarded(f"{names}: handler", lambda: in_handler(process, mark, act, chance))
    end = time.monotonic() + 0.05 * chance.random()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    guarded(f"{names}: end", lambda: finish(process))
    for thread in threads:
        thread.join(LONGEST)
        if thread.is_alive():
            wrong[f"{names}: an actor hangs"] += 1


def finish(process: Process) -> None:
    process.close()
    code = process.poll()
    assert code is not None, "it does not know its end"
    assert code == process.wait() == process.returncode == process.result().exit


def in_handler(process: Process, mark: bytes, interrupted: Actor, chance: random.Random) -> None:
    """A signal handler ends the Process and waits, while the main thread is in another method."""
    end = chance.choice([Process.kill, Process.close])
    seen: list[int | None] = []

    def handle(*_: object) -> None:
        end(process)
        process.wait()
        seen.append(process.poll())

    def send() -> None:
        # Again and again: Python does not notice a signal that comes just before a read(2) begins.
        time.sleep(0.003 * chance.random())
        while not seen:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.05)

    signal.signal(signal.SIGUSR1, handle)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        interrupted(process, mark)
    finally:
        while not seen:  # the handler runs between two bytecodes of this thread
            time.sleep(0.001)
        sender.join()
    assert seen[0] is not None


def run_beside(box: Sandbox, fresh: bool, stop: threading.Event, done: list[int]) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        argv = ["sh", "-c", f"echo beside {number}; exit {number % 100}"]
        try:
            result: Any = tuple(box.run(argv, fresh=fresh))
        except BaseException as error:
            if is_busy(error):
                continue
            result = repr(error)
        if result != (number % 100, b"beside %d\n" % number, b""):
            wrong[f"a run beside: {result}"] += 1
        time.sleep(0.002)  # leave some of the machine to the rounds
    done.append(number)


def is_busy(error: BaseException) -> bool:
    """Whether the machine has no more processes or threads just now."""
    return getattr(error, "errno", 0) == errno.EAGAIN or "start new thread" in str(error)


def descriptors() -> list[str]:
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))


def main(root: str, rounds: int, seed: int) -> int:
    chance = random.Random(seed)
    boxes = {name: Sandbox(root, **mode) for name, mode in MODES.items()}
    for box in boxes.values():  # what is made once is made
        box.run(["true"])
        box.start(["true"]).communicate()
    before, threads = descriptors(), threading.active_count()
    stop, done = threading.Event(), list[int]()
    beside = [
        threading.Thread(target=run_beside, args=(boxes["reaper"], fresh, stop, done))
        for fresh in (True, False)
    ]
    for thread in beside:
        thread.start()
    try:
        for number in range(rounds):
            faulthandler.dump_traceback_later(2 * LONGEST, exit=True)
            one_round(boxes, number, chance)
            if number % 1000 == 999:
                print(f"{number + 1} rounds", flush=True)
    finally:
        stop.set()
        for thread in beside:
            thread.join()
    faulthandler.cancel_dump_traceback_later()
    for box in boxes.values():
        box.close()
    after = descriptors()
    if len(after) > len(before):
        wrong[f"descriptors: {before} {after}"] += 1
    print(f"{rounds} rounds, {sum(done)} runs beside them, seed {seed}, {threads} threads")
    for text, count in wrong.most_common(20):
        print(count, "x", text)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int((sys.argv[3:] or ["1"])[0])))
