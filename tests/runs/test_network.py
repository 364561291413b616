# SPDX-License-Identifier: Apache-2.0
"""An isolated network that programs can live with: names, addresses, and a way out that is shut."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lib.boxes import open_box

from sandboxlib import Result

pytest_plugins = ["lib.ways"]

PROGRAM = """
import errno, socket, sys
families = [(socket.AF_INET, "127.0.0.1", "192.0.2.1", "10.0.2.15")]
if sys.argv[1:] == ["6"]:
    families.append((socket.AF_INET6, "::1", "2001:db8::1", "fd00::a00:20f"))
for family, local, outside, own in families:
    assert socket.getaddrinfo(local, 80, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.connect((outside, 53))
        assert s.getsockname()[0] == own, s.getsockname()
    with socket.create_server((own, 0), family=family) as server:
        with socket.create_connection(server.getsockname()[:2]) as client:
            peer, _ = server.accept()
            peer.close()
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(60)
        assert s.connect_ex((outside, 80)) == errno.ECONNREFUSED
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    group = socket.inet_aton("239.1.1.1") + socket.inet_aton("0.0.0.0")
    s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
"""


@pytest.fixture
def families() -> list[str]:
    """The argument that tells PROGRAM whether new network namespaces have IPv6."""
    switch = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    return ["6"] if switch.exists() and switch.read_text().strip() == "0" else []


def test_programs_find_local_names_and_their_own_address_and_no_way_out(
    run: Callable[..., Result], families: list[str]
) -> None:
    command = [sys.executable, "-c", PROGRAM, *families]
    assert run("/", command, network="isolated") == (0, b"", b"")


def test_the_address_is_there_in_every_run_of_a_slot_that_stays(executor: str) -> None:
    script = "grep -c '10.0.2.15$' /proc/net/fib_trie; readlink /proc/self/ns/net"
    with open_box("/", network="isolated") as box:
        seen = [box.run(["sh", "-c", script], cwd="/").out for _ in range(6)]
    assert all(out is not None and int(out.split()[0]) for out in seen)
    assert len(set(seen)) < len(seen), executor  # of the namespaces some are the same


def test_nothing_is_sent_to_make_the_address(executor: str) -> None:
    with open_box("/", network="isolated") as box:
        counted = box.run(["sh", "-c", "tail -n 1 /proc/net/dev"], cwd="/", fresh=True).out
    assert counted is not None
    assert set(counted.split()[1:]) == {b"0"}, executor
