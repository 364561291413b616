# SPDX-License-Identifier: Apache-2.0
"""Runs beside each other: on one Overlay, on one upper, and after a host that was killed."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lib import hosts
from lib.machine import many
from lib.waiting import wait_until

from sandboxlib import Overlay, Sandbox, Store

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
    (kind,) = (store / "layers").iterdir()
    assert len(list(kind.iterdir())) == 1
    Store(store).prune()
    assert [*store.glob("tmp/*"), *store.glob("layers/*/*")] == []
