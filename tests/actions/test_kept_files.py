# SPDX-License-Identifier: Apache-2.0
"""The files that a worker keeps: verified, bounded, and whole whenever it is killed."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib.machine import require

from sandboxlib import Store, _reapi

LIB = Path(__file__).resolve().parents[1]

#: Executes actions with ever other input roots until it is killed. $1: the store. $2: a seed.
ENDLESS = """
import sys
sys.path.insert(0, {lib!r})
sys.path.insert(0, {here!r})
from conftest import Place
from sandboxlib import Store
place = Place(Store(sys.argv[1], max_size=int(sys.argv[3])))
number = int(sys.argv[2])
print("ready", flush=True)
while True:
    number += 1
    entries = {{f"f{{each}}": b"%d %d" % (each, number // 10) for each in range(50)}}
    entries["big"] = b"%d" % number * 300000
    outcome = place.run("cat src/f7 > out", ["out"], {{"src": entries}})
    assert outcome.code == "OK", outcome
"""


def program(text: str, **values: object) -> str:
    return text.format(lib=str(LIB), here=str(Path(__file__).parent), **values)


def check_whole(store: Path) -> int:
    """Each file has the content that its name says. Returns how many there are."""
    names = os.listdir(store / "files") if (store / "files").exists() else []
    for name in names:
        assert hashlib.sha256((store / "files" / name).read_bytes()).hexdigest() == name
    return len(names)


@pytest.mark.parametrize("number", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_a_worker_that_is_killed_at_any_time_leaves_whole_files(
    tmp_path: Path, make_place: Callable[..., Any], number: int
) -> None:
    make_place(at=tmp_path / "of-a-check").run("true")  # skips if there is no shell
    store = tmp_path / "killed"
    code, chance = program(ENDLESS), random.Random(7)
    for seed in range(number):
        argv = [sys.executable, "-c", code, str(store), str(seed * 1000), str(1 << 30)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0, 1.0))
            process.send_signal(signal.SIGKILL)
        check_whole(store)
    place = make_place(at=store)
    outcome = place.run("cat src/f7 src/f8", [], {"src": {"f7": b"1", "f8": b"2"}})
    assert outcome.result.stdout_raw == b"12"
    assert os.listdir(store / "tmp") == []


def test_what_was_used_last_stays_when_the_store_is_full(
    tmp_path: Path, make_place: Callable[..., Any]
) -> None:
    place = make_place(at=tmp_path / "small", max_size=16 << 20)
    for number in range(12):
        content = b"%d" % number * (2 << 20)
        outcome = place.run("cat f | wc -c", [], {"f": content})
        assert outcome.result.stdout_raw == b"%d\n" % len(content)
        place.executor.release()
    used = sum(
        each.stat(follow_symlinks=False).st_blocks * 512
        for each in (tmp_path / "small").rglob("*")
        if each.is_file() and not each.is_symlink()
    )
    assert used < 24 << 20
    assert not place.executor.files.absent([_reapi.digest_of(content)])


#: Executes actions in a store on a file system of 12 MiB.
FULL = """
import sys
sys.path.insert(0, {lib!r})
sys.path.insert(0, {here!r})
from conftest import Place
from sandboxlib import Store
place = Place(Store(sys.argv[1]))
outcome = place.run("true", [], {{"f": b"x" * (40 << 20)}})
assert (outcome.code, outcome.result) == ("RESOURCE_EXHAUSTED", None), outcome
assert sys.argv[1] in outcome.message, outcome
for number in range(20):
    outcome = place.run("cat f | wc -c", [], {{"f": b"%d" % (number % 10) * (2 << 20)}})
    assert outcome.code == "OK", outcome
outcome = place.run("dd if=/dev/zero of=f bs=1M count=40 2>&1", ["f"])
assert outcome.code == "RESOURCE_EXHAUSTED", outcome
print("done")
"""


def test_a_disk_that_is_full_is_told_and_pruned(
    tmp_path: Path, make_place: Callable[..., Any]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("a file system of one's own takes root")
    make_place().run("true")
    place = tmp_path / "full"
    place.mkdir()
    script = 'mount -t tmpfs -o size=12m sandboxlib "$0" && exec "$@"'
    argv = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, str(place)]
    argv += [sys.executable, "-c", program(FULL), str(place / "store")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "done\n", done.stderr[-3000:]


def test_two_workers_share_a_store(tmp_path: Path, make_place: Callable[..., Any]) -> None:
    first, second = (make_place(at=tmp_path / "shared") for _ in range(2))
    entries = {"f": b"shared" * 1000}
    assert first.run("cat f | wc -c", [], entries).result.stdout_raw == b"6000\n"
    second.blobs.update(first.blobs)
    digest = _reapi.digest_of(entries["f"])
    del second.blobs[digest]
    root = first.root(entries)
    second.blobs.update({name: each for name, each in first.blobs.items() if name != digest})
    assert second.run("cat f | wc -c", root=root).result.stdout_raw == b"6000\n"


def test_no_command_can_write_to_a_file_of_the_store(place: Any) -> None:
    require(os.path.exists("/proc/self/mountinfo"), "there is no /proc")
    entries = {"f": b"as it was", "d": {"g": b"too"}}
    root = place.root(entries)
    script = "echo x >> f; chmod 777 f d d/g; ln d/g h; echo y >> h; : > d/g; rm -rf d"
    script += "; stat -c %h bin/busybox"
    assert place.run(script, root=root).result.stdout_raw == b"1\n"
    assert place.run("cat f d/g; stat -c %h f", root=root).result.stdout_raw == b"as it wastoo1\n"
    check_whole(Path(place.executor.store.directory))


def test_a_store_of_another_user_is_refused(place: Any, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a directory of another user takes root")
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 12345, 12345)
    other = type(place)(Store(tmp_path / "theirs"))
    assert other.run("true").code == "INTERNAL"
