# SPDX-License-Identifier: Apache-2.0
"""Runs beside each other: on one Overlay, on one upper, and after a host that was killed."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lib.machine import many

from sandboxlib import Overlay, Sandbox

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
