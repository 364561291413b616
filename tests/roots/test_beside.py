# SPDX-License-Identifier: Apache-2.0
"""Runs beside each other: on one Overlay, on one upper, and after a host that was killed."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import subprocess
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lib import hosts
from lib.machine import many
from lib.waiting import wait_until

from sandboxlib import Overlay, Sandbox, SetupError, Store

pytest_plugins = ["lib.ways"]

THREADS = 32


def test_thirty_two_threads_share_one_overlay(rootfs: Path, executor: str) -> None:
    (rootfs / "etc" / "shared").write_text("0\n")
    script = "cat /etc/shared; echo $0 > /etc/shared; echo x > /etc/of-$0; ls /etc; cat /etc/shared"
    bad: list[object] = []
    with Sandbox(Overlay(rootfs)) as box:
        start = threading.Barrier(THREADS)

        def run(number: int) -> None:
            start.wait(60)
            for turn in range(many(3, 40)):
                result = box.run(["sh", "-c", script, f"{number}.{turn}"])
                name = b"%d.%d\n" % (number, turn)
                if result != (0, b"0\nof-" + name + b"shared\n" + name, b""):
                    bad.append(result)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(run, range(THREADS)))
    assert not bad, bad[:3]
    assert sorted(os.listdir(rootfs / "etc")) == ["shared"]


# ---- one upper -------------------------------------------------------------------------------


def test_what_one_run_leaves_in_an_upper_the_next_one_finds(
    rootfs: Path, tmp_path: Path, executor: str
) -> None:
    for number in range(3):
        with Sandbox(Overlay(rootfs, upper=tmp_path / "upper")) as box:
            assert box.run(["sh", "-c", "echo x >> /etc/x; wc -l < /etc/x"]).out == b"%d\n" % (
                number + 1
            )


def test_one_run_waits_for_the_upper_of_another(
    rootfs: Path, tmp_path: Path, executor: str
) -> None:
    overlay = Overlay(rootfs, upper=tmp_path / "upper")
    script = "echo began; read line; echo first >> /etc/x"
    with Sandbox(overlay) as box, box.start(["sh", "-c", script], stdin=-1) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == b"began\n"
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(box.run, ["sh", "-c", "echo second >> /etc/x; cat /etc/x"])
            time.sleep(0.3)
            assert not second.done()
            first.stdin.write(b"\n")
            first.stdin.close()
            first.wait()
            assert second.result(60).out == b"first\nsecond\n"


def test_a_run_that_may_not_wait_for_an_upper_is_refused(
    rootfs: Path, tmp_path: Path, executor: str
) -> None:
    overlay = Overlay(rootfs, upper=tmp_path / "upper", busy="refuse")
    with Sandbox(overlay) as box, box.start(["sleep", "1000"]) as first:
        with pytest.raises(SetupError) as caught:
            box.run(["true"])
        assert caught.value.errno == errno.EBUSY
        first.kill()
        first.wait()
        assert box.run(["true"]).exit == 0


def test_waiting_for_an_upper_counts_for_the_timeout(
    rootfs: Path, tmp_path: Path, executor: str
) -> None:
    with (
        Sandbox(Overlay(rootfs, upper=tmp_path / "upper")) as box,
        box.start(["sleep", "1000"]) as first,
    ):
        began = time.monotonic()
        try:
            assert box.run(["true"], timeout=0.3).timed_out
        except SetupError as error:
            assert error.errno in (errno.EBUSY, errno.ETIMEDOUT)  # noqa: PT017
        assert 0.2 < time.monotonic() - began < 30
        first.kill()


def test_other_layers_than_an_upper_was_made_with_are_refused(
    rootfs: Path, tmp_path: Path, executor: str
) -> None:
    (tmp_path / "other").mkdir()
    upper = tmp_path / "upper"
    with Sandbox(Overlay(rootfs, upper=upper)) as box:
        box.run(["touch", "/x"], check=True)
    other = Sandbox(Overlay(rootfs, tmp_path / "other", upper=upper))
    with other, pytest.raises(SetupError) as caught:
        other.run(["true"])
    assert caught.value.errno == errno.ESTALE
    with Sandbox(Overlay(rootfs, upper=upper)) as box:
        assert box.run(["ls", "/x"]).exit == 0


# ---- a host that was killed ------------------------------------------------------------------

HOST = """
from sandboxlib import Overlay
with Sandbox(Overlay(root, storage="disk")) as box:
    process = box.start(["sh", "-c", "echo x > /etc/x; echo began; sleep 1000"])
    print(process.stdout.readline().decode(), end="", flush=True)
    process.wait()
"""

#: What another process does later, on which the upper is removed.
LATER = {
    "run": """
from sandboxlib import Overlay
with Sandbox(Overlay(root, storage="disk")) as box:
    assert box.run(["ls", "/etc/x"]).exit == 1
""",
    "prune": "from sandboxlib import Store; Store(mode['store']).prune()",
}


@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
def test_an_upper_that_a_killed_host_left_is_removed_later(
    rootfs: Path, tmp_path: Path, executor: str, monkeypatch: pytest.MonkeyPatch, later: str
) -> None:
    place, mode = tmp_path / "disk", {"store": str(tmp_path / "store")}
    (place / "sandboxlib-of-somebody-else").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(place))
    with subprocess.Popen(hosts.command(HOST, rootfs), stdout=subprocess.PIPE) as host:
        try:
            assert host.stdout is not None
            assert host.stdout.readline() == b"began\n"
            (made,) = place.glob("sandboxlib-upper-*")
            hosts.run(later, rootfs, dict(mode))
            assert (made / "upper" / "etc" / "x").exists()  # it is in use
        finally:
            host.kill()

    def is_removed() -> bool:  # as soon as the kernel has ended the command
        hosts.run(later, rootfs, dict(mode))
        return not made.exists()

    assert wait_until(is_removed)
    assert os.listdir(place) == ["sandboxlib-of-somebody-else"]


# ---- one store -------------------------------------------------------------------------------

UNPACKS = """
from sandboxlib import Layer, Overlay, Store
layer = Layer.from_tar(mode["tar"], Store(mode["store"]))
with Sandbox(Overlay(root, layer)) as box:
    for fresh in (True, False):
        result = box.run(["sh", "-c", "ls /many | wc -l; cat /many/last"], fresh=fresh, check=True)
        print(result.out.decode().split())
"""


def test_eight_processes_share_a_store_and_one_is_killed_while_it_unpacks(
    rootfs: Path, tmp_path: Path, executor: str
) -> None:
    number = many(500, 20_000)
    with tarfile.open(tmp_path / "layer.tar", "w") as tar:
        for name in [*map(str, range(number - 1)), "last"]:
            entry = tarfile.TarInfo(f"many/{name}")
            entry.size = len(name)
            tar.addfile(entry, io.BytesIO(name.encode()))
    store = tmp_path / "store"
    argv = hosts.command(UNPACKS, rootfs, {"tar": str(tmp_path / "layer.tar"), "store": str(store)})

    def is_unpacking() -> bool:
        return any(path.is_dir() for path in store.glob("tmp/*/entry/tree/many"))

    with contextlib.ExitStack() as undo:
        started = [undo.enter_context(subprocess.Popen(argv, stdout=subprocess.DEVNULL))]
        undo.callback(started[0].kill)
        assert wait_until(is_unpacking)
        for _ in range(7):
            host = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            started.append(undo.enter_context(host))
            undo.callback(host.kill)
        started[0].kill()
        assert started[0].wait(60) == -signal.SIGKILL
        for host in started[1:]:
            out, err = host.communicate(timeout=120)
            assert (host.returncode, out) == (0, f"['{number}', 'last']\n" * 2), err
    for kind in (store / "layers").iterdir():  # a user with ranges has two kinds
        assert len(list(kind.iterdir())) == 1
    Store(store).prune()
    assert [*store.glob("tmp/*"), *store.glob("layers/*/*")] == []
