# SPDX-License-Identifier: Apache-2.0
"""The host never waits for what a command can withhold, whichever way it runs the command."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import find_busybox, needs_root, require, wait_until

from sandboxlib import CAPTURE, Result, Sandbox

pytestmark = needs_root
Way = Callable[..., Result]


def by_map(box: Sandbox, command: list[str], **words: Any) -> Result:
    found = list(box.map([command] * 2, jobs=2, on_failure="continue", **words))
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return found[-1]


def by_start(box: Sandbox, command: list[str], timeout: float, **words: Any) -> Result:
    with box.start(command, **words) as process:
        late = False
        try:
            process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            late = True
            process.kill()
            process.wait()
        assert process.result is not None
        process.result.timed_out = late
        return process.result


def by_async(box: Sandbox, command: list[str], **words: Any) -> Result:
    return asyncio.run(box.run_async(command, **words))


WAYS: dict[str, Way] = {
    "slot": lambda box, command, **words: box.run(command, **words),
    "fresh": lambda box, command, **words: box.run(command, fresh=True, **words),
    "map": by_map,
    "start": by_start,
    "async": by_async,
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


@pytest.fixture
def box(shared_rootfs: Path) -> Iterator[Sandbox]:
    with Sandbox(shared_rootfs) as made:
        yield made


def compiled(tmp_path: Path, source: str) -> Path:
    """A root with the static program /bin/probe and busybox."""
    require(shutil.which("cc"), "there is no C compiler")
    busybox = find_busybox()
    require(busybox, "there is no static busybox (apt: busybox-static)")
    assert busybox is not None
    root = tmp_path / "probe"
    for name in ("bin", "proc", "tmp", "dev", "mnt"):
        (root / name).mkdir(parents=True)
    root.chmod(0o755)
    (tmp_path / "probe.c").write_text(source)
    flags = ["-O1", "-static", "-pthread", "-o", str(root / "bin" / "probe")]
    subprocess.run(["cc", "-w", *flags, str(tmp_path / "probe.c")], check=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    (root / "bin" / "sh").symlink_to("busybox")
    return root


# ---- output that is taken back -----------------------------------------------------------------

O_NONBLOCK = 0o4000


def pipes() -> dict[int, int]:
    """The flags of the pipes and terminals that this process has open, by descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith(("pipe:", "/dev/p")):
                text = Path(f"/proc/self/fdinfo/{name}").read_text()
                found[int(name)] = int(text.partition("flags:")[2].split()[0], 8)
    return found


@ways
@pytest.mark.parametrize("pty", [False, True])
def test_the_hosts_ends_do_not_block_and_the_commands_do(box: Sandbox, way: Way, pty: bool) -> None:
    before = pipes()
    seen: list[tuple[int, int]] = []
    said = bytearray()

    def take(data: bytes) -> None:
        said.extend(data)
        seen.extend((fd, flags) for fd, flags in pipes().items() if fd not in before)

    words: dict[str, Any] = {"pty": True} if pty else {"stderr": take}
    if way is WAYS["start"]:
        words["stdin"] = None
    script = "grep flags /proc/self/fdinfo/1; echo x >&2; sleep 0.1"
    result = way(box, ["sh", "-c", script], stdout=take, timeout=60, **words)
    assert result.exit == 0, result
    assert seen
    assert all(flags & O_NONBLOCK for _, flags in seen), seen
    flags = [int(line.split()[1], 8) for line in said.decode().splitlines() if "flags" in line]
    assert flags
    assert not any(f & O_NONBLOCK for f in flags)


THIEF = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <unistd.h>
int main(void) { /* takes back what it wrote, as soon as the host was told of it */
    int out = open("/proc/self/fd/1", O_RDONLY | O_NONBLOCK);
    int err = open("/proc/self/fd/2", O_RDONLY | O_NONBLOCK);
    char byte[64];
    if (out < 0 || err < 0)
        return 3;
    if (fork()) {
        for (;;)
            read(out, byte, sizeof byte), read(err, byte, sizeof byte);
    }
    for (;;)
        write(1, "x", 1), write(2, "x", 1);
}
"""


@ways
@pytest.mark.slow
@pytest.mark.parametrize("words", [{}, {"max_output": 1 << 40, "on_overflow": "kill"}])
def test_output_that_is_taken_back_delays_no_timeout(
    tmp_path: Path, way: Way, words: dict[str, Any]
) -> None:
    with Sandbox(compiled(tmp_path, THIEF)) as box:
        began = time.monotonic()
        assert way(box, ["/bin/probe"], timeout=0.7, **words).timed_out
        assert time.monotonic() - began < 20


# ---- stdin that is not read --------------------------------------------------------------------

FILLED = "exec yes 1<>/proc/self/fd/0"


@pytest.fixture
def filled(shared_rootfs: Path) -> Iterator[Any]:
    """A Process whose command has filled the pipe of its stdin itself."""
    with Sandbox(shared_rootfs) as box:
        process = box.start(["sh", "-c", FILLED], stdin=CAPTURE)
        poll = select.poll()
        poll.register(process.stdin, select.POLLOUT)
        try:
            assert wait_until(lambda: not poll.poll(0))
            yield process
        finally:
            process.close()


def test_communicate_obeys_its_timeout_where_stdin_is_full(filled: Any) -> None:
    for input in (b"x", None):
        began = time.monotonic()
        with pytest.raises(subprocess.TimeoutExpired):
            filled.communicate(input, timeout=0.2)
        assert time.monotonic() - began < 20
    filled.kill()
    assert filled.wait(60) == -9


def test_what_was_not_written_does_not_keep_the_end(filled: Any) -> None:
    filled.stdin.write(b"x")  # buffered
    filled.close()
    assert filled.stdin.closed


def test_an_exception_in_the_block_does_not_wait_for_stdin(filled: Any) -> None:
    filled.stdin.write(b"x")
    with pytest.raises(KeyError), filled:
        raise KeyError
    assert filled.stdin.closed


def test_a_write_waits_for_room_and_ends_with_the_run(filled: Any) -> None:
    raised: list[BaseException] = []

    def write() -> None:
        try:
            filled.stdin.raw.write(b"x")
        except BrokenPipeError as error:
            raised.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    filled.kill()
    filled.wait(60)
    thread.join(60)
    assert not thread.is_alive()
    assert len(raised) == 1
