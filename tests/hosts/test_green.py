# SPDX-License-Identifier: Apache-2.0
"""Hosts that gevent or eventlet has patched: what works there, and what is refused."""

from __future__ import annotations

import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from lib.machine import IS_SANITIZED, needs_root, python, require

pytestmark = [
    needs_root,
    pytest.mark.skipif(IS_SANITIZED, reason="greenlets copy parts of the stack"),
]

PATCH = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}
libraries = pytest.mark.parametrize("library", PATCH)
whens = pytest.mark.parametrize("mode", ["before the import", "after the import", "after a run"])

BEGIN = """
import faulthandler, os, sys, threading, time
faulthandler.dump_traceback_later(120, exit=True)
def patch():
    {patch}
if {mode!r} == "before the import":
    patch()
import sandboxlib
from sandboxlib import CAPTURE, Mount, Sandbox, SandboxExecutor, UnsupportedError
box = Sandbox({root!r})
if {mode!r} == "after a run":
    assert [r.exit for r in box.map([["true"]] * 2, jobs=2)] == [0, 0]
if {mode!r} != "before the import":
    patch()
thread = threading.Thread(target=time.sleep, args=(0,))
thread.start()
thread.join()
"""


def run(root: Path, library: str, mode: str, script: str) -> None:
    """Run a script in a host that a library has patched at some time."""
    require(find_spec(library), f"there is no {library}")
    begin = BEGIN.format(patch=PATCH[library], mode=mode, root=str(root))
    argv = [*python(), "-W", "ignore", "-c", begin + script]
    done = subprocess.run(argv, capture_output=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr.decode()


@libraries
@whens
def test_a_patched_host_runs_commands(rootfs: Path, library: str, mode: str) -> None:
    script = """
for fresh in (False, True):
    result = box.run(["sh", "-c", "cat; echo e >&2; exit 3"], stdin=b"in", fresh=fresh)
    assert result == (3, b"in", b"e\\n")
    assert box.run(["sleep", "1000"], timeout=0.1, fresh=fresh).timed_out
lines = []
assert box.run(["sh", "-c", "echo a; echo b"], stdout=lines.append).exit == 0
assert b"".join(lines) == b"a\\nb\\n"
assert [r.exit for r in box.map([["true"], ["false"]] * 3, 2, on_failure="continue")] == [0, 1] * 3
results = []
threads = [threading.Thread(target=lambda: results.append(box.run(["true"]))) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert [r.exit for r in results] == [0, 0, 0]
with SandboxExecutor(box, 2) as pool:
    assert [f.result().exit for f in [pool.submit(["true"]) for _ in range(3)]] == [0, 0, 0]
# A mount point that the root lacks is removed after the run.
there = Sandbox(box.root, extra_mounts=[Mount.tmpfs("/missing/here")])
for fresh in (True, True, False):
    assert there.run(["ls", "/missing"], fresh=fresh).out == b"here\\n"
there.close()
assert not os.path.exists(os.path.join(box.root, "missing"))
box.close()
"""
    run(rootfs, library, mode, script)


@libraries
@whens
def test_a_patched_host_talks_to_processes(shared_rootfs: Path, library: str, mode: str) -> None:
    script = """
import asyncio, subprocess
content = bytes(300_000)
with box.start(["cat"], stdin=CAPTURE) as process:
    assert process.communicate(content) == (content, b"")
with box.start(["true"], stdin=CAPTURE) as process:
    assert process.communicate(content) == (b"", b"")
with box.start(["sleep", "1000"]) as process:
    try:
        process.wait(0.05)
    except subprocess.TimeoutExpired:
        process.terminate()
    assert process.wait() == -15
with box.start(["sh", "-c", "read x; echo got $x"], pty=True) as process:
    process.stdin.write(b"abc\\n")
    assert process.stdout.read().endswith(b"got abc\\r\\n")
without = Sandbox(box.root, init=False)
process = without.start(["true"])
assert process.wait() == 0
process.close()
async def main():
    async with box.start_async(["cat"], stdin=CAPTURE) as process:
        out = await process.communicate(b"hello")
    return out, [r.exit for r in await asyncio.gather(*(box.run_async(["true"]) for _ in range(3)))]
assert asyncio.run(main()) == ((b"hello", b""), [0, 0, 0])
box.close()
"""
    run(shared_rootfs, library, mode, script)


@libraries
@whens
def test_what_needs_a_thread_beside_the_caller_is_refused(
    shared_rootfs: Path, library: str, mode: str
) -> None:
    script = """
try:
    print(list(box.map([["true"]] * 3, jobs=2, fresh=True)))
except UnsupportedError as error:
    assert "a map whose runs use no slot" in str(error), error
    assert "greenlets" in str(error), error
else:
    sys.exit("a map with threads was not refused")
try:
    sandboxlib.get_executor("bubblewrap").run_in(box, ["true"])
except UnsupportedError as error:
    assert "greenlets" in str(error), error
else:
    sys.exit("bubblewrap was not refused")
reports = {report["name"]: report for report in sandboxlib.doctor()}
assert reports["chroot"]["usable"]
assert "greenlets" in reports["bubblewrap"]["reason"]
assert "greenlets" in reports["bubblewrap"]["causes"][0][0]
# An id map that another thread has to write.
from sandboxlib._runs.id_maps import Mapper
try:
    Mapper.__enter__(None)
except UnsupportedError as error:
    assert "user='ranges'" in str(error), error
"""
    run(shared_rootfs, library, mode, script)


@libraries
def test_a_pool_of_real_threads_keeps_the_hub_turning(shared_rootfs: Path, library: str) -> None:
    by_pool = {
        "gevent": "import gevent; spawn, sleep = gevent.spawn, gevent.sleep\n"
        "call = lambda f, *a: gevent.get_hub().threadpool.apply(f, a)",
        "eventlet": "from eventlet import spawn, sleep, tpool\ncall = tpool.execute",
    }
    script = """
ticks = 0
def tick():
    global ticks
    while True:
        ticks += 1
        sleep(0.001)
ticking = spawn(tick)
reader, writer = os.pipe()
def end():
    while ticks < 20:
        sleep(0.001)
    os.write(writer, b"x\\n")
ending = spawn(end)  # the command ends only if the hub turns meanwhile
result = call(lambda: box.run(["sh", "-c", "read x; echo $x"], stdin=reader))
assert result.out == b"x\\n"
assert ticks >= 20
box.close()
"""
    run(shared_rootfs, library, "before the import", by_pool[library] + script)
