# SPDX-License-Identifier: Apache-2.0
"""A run in a slot leaves nothing for the next run to read.

A program records all that it can learn (recorder.py), before and after a run that does one thing
which may be left behind. What differs between two runs of a slot, and does not between two fresh
runs, is carried over. NOT_LOOKED_AT says what that may be, and why.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import LIB, require

from sandboxlib import Mount, Overlay, Policy, Result, Sandbox
from sandboxlib._runs import slots

PYTHON = os.path.realpath(sys.executable)
RECORDER = (LIB / "recorder.py").read_text()
CALL = "import ctypes, os, socket, sys\ncall = ctypes.CDLL(None, use_errno=True).syscall\n"

MACHINE = "of the machine, or of all its network namespaces: others beside this test change it"
#: /sys is the machine's, with its network devices; and so is /proc, but for what namespaces have.
OF_MACHINE = r"/sys/|/proc/(?!(sys|sysvipc|net|mounts|self|thread-self)(/|:| |$))"
#: Names of recorder.py, by regular expression, that may differ. ^ is behind /proc, self or 1.
NOT_LOOKED_AT = {
    r"/sys/(fs|kernel/(random|ns_last_pid|pty|perf_event|hung_task_detect_count))": MACHINE,
    r"/net/(softnet_stat|protocols|ptype|stat/(rt|arp|ndisc)_cache)": MACHINE,
    r"/net/sockstat:(TCP::(4|8|10)|UDP::4)$": MACHINE,  # orphan, alloc and mem
    r"/status:SigQ:": "the signals that wait for all processes of the caller's user",
    r"/(sched|stat|statm|schedstat|io|oom_score|arch_status)( |:)": (
        "times and counts of one process"
    ),
    r".*(Vm(RSS|HWM|PTE)|Rss(Anon|File|Shmem)|ctxt_switches).*": (
        "of one process; the kernel counts pages in batches, so that the last digits are noise"
    ),
    r"/net/(snmp|snmp6|netstat|dev_snmp6)": (
        "counters of errors; to read them after each run takes 80 us. docs/slots.md says so"
    ),
    r"/net/netlink:": "the address and the number of the resident's socket, as with namespaces",
    r"/ns/": "the numbers of namespaces, which say no more than that a slot is the same",
    r"/(mountinfo|mounts|mountstats)": "the numbers of mounts: each run has new ones",
}


ACTS: dict[str, str] = {
    "nothing": "",
    "long order": "",
    "longer order": "",
    "many processes": """
for _ in range(50):
    if not os.fork(): os._exit(0)
for _ in range(50): os.wait()
""",
    "memory": "x = bytearray(50_000_000); os.umask(0o77); call(135, 0x40000)",
    "ipc objects": """
for make, control in ((29, 31), (64, 66), (68, 71)):
    words = (0, 4096, 0o1600) if make == 29 else (0, 1, 0o1600) if make == 64 else (0, 0o1600)
    for _ in range(3):
        number = call(make, *words)
        call(control, number, 0, 0) if make != 64 else call(control, number, 0, 0, 0)
""",
    "queues": """
q = call(240, b"carried", 0o102, 0o600, 0)
os.close(q) if q >= 0 else None
call(241, b"carried")
""",
    "sockets": """
for family in (socket.AF_INET, socket.AF_INET6):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(family, kind) as s:
            s.bind(("", 0))
""",
    "unreachable": """
for family, host in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(family, kind) as s:
            for port in range(1, 20):
                try: s.connect((host, port))
                except OSError: pass
""",
    "flow label": """
import struct
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
    for share in (255, 1, 2):
        words = (bytes(15) + b"\\1", socket.htonl(0x12345), 0, share, 1, 60, 120, 0)
        request = struct.pack("=16sIBBHHHI", *words)
        try: s.setsockopt(socket.IPPROTO_IPV6, 32, request)
        except OSError: pass
""",
    "keyrings": """
for key in (-3, -4, -5, -2, -1):
    call(250, 5, key, 0x3f3f3f3f)
    call(250, 15, key, 100000)
    call(250, 4, key, -1, -1)
    call(250, 29, key, 0, 0)
call(250, 22, -1, -2)
call(250, 1, b"mine")
call(250, 18)
""",
    "revoked keyrings": """
for key in (-5, -4): call(250, 3, key)
for key in (-5, -4): call(250, 21, key)
""",
    "a key": "for key in (-4, -5): call(248, b'user', b'carried', b'over', 4, key)",
    "pid 1": """
import resource
def attempt(what, *words):
    try: what(*words)
    except (OSError, ValueError): pass
for which in range(16): attempt(resource.prlimit, 1, which, (17, 17))
attempt(os.setpriority, os.PRIO_PROCESS, 1, 5)
attempt(os.sched_setscheduler, 1, os.SCHED_BATCH, os.sched_param(0))
attempt(os.sched_setaffinity, 1, {0})
call(251, 1, 1, 3 << 13)
for name in os.listdir("/proc/1"):
    for text in (b"5", b"0x33", b"17"):
        try:
            fd = os.open(f"/proc/1/{name}", os.O_WRONLY | os.O_NONBLOCK)
            attempt(os.write, fd, text)
            os.close(fd)
        except OSError: pass
""",
    "itself": """
for name in ("coredump_filter", "oom_score_adj", "autogroup", "timerslack_ns", "comm", "loginuid"):
    for text in ("7", "0x33"):
        try:
            with open(f"/proc/self/{name}", "w") as f: f.write(text)
        except OSError: pass
""",
    "namespaces": """
import socket
for flag in (0x10000000, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x40000000):
    if not os.fork():
        call(272, flag)
        call(170, b"carried", 7)
        for name in ("setgroups", "uid_map", "gid_map", "projid_map"):
            try:
                text = "deny" if name == "setgroups" else "0 0 1"
                with open(f"/proc/self/{name}", "w") as f: f.write(text)
            except OSError: pass
        os._exit(0)
    os.wait()
""",
}
#: After these the slot has to be another: they leave something.
#: What is done over layers as well; nowhere else, as it would reach the machine's own files.
OVER_LAYERS = {
    "files": """
def attempt(what, *words):
    try: what(*words)
    except OSError: pass
for name in ("/carried", "/etc/carried", "/var/carried", "/etc/passwd", "/dev/shm/carried"):
    try:
        with open(name, "a") as file: file.write("carried" * 10000)
    except OSError: pass
for name in ("/", "/etc", "/srv"):
    attempt(os.chmod, name, 0o711)
    attempt(os.utime, name, (1, 1))
    attempt(os.setxattr, name, "user.carried", b"over")
for name in ("/carried.d", "/etc/carried.d"): attempt(os.mkdir, name)
attempt(os.unlink, "/etc/hostname")
attempt(os.rename, "/etc/group", "/etc/other")
""",
}
SPOILING = {
    "default": {"longer order"},
    "no filter": {"longer order", "flow label"},
    "root in a user namespace": {"longer order", "flow label", "revoked keyrings", "a key"},
    "layers": {"longer order"},
}
#: What is looked at in a root of layers, whose directories and free blocks nobody else changes.
DIRECTORIES = ["/", "/etc", "/srv", "/var"]
Record = dict[str, str]


def python(box: Sandbox, script: str, fresh: bool, **words: Any) -> Result:
    return box.run([PYTHON, "-I", "-S", "-c", script], cwd="/", fresh=fresh, timeout=120, **words)


def record(box: Sandbox, fresh: bool) -> Record:
    directories = DIRECTORIES if isinstance(box.root, Overlay) else []
    argv = [PYTHON, "-I", "-S", "-c", RECORDER, *directories]
    result = box.run(argv, cwd="/", fresh=fresh, timeout=300)
    assert result.exit == 0, result.err.decode()
    found: Record = json.loads(result.out)
    return found


def act(box: Sandbox, name: str, fresh: bool) -> None:
    env = {"long order": "x" * 60_000, "longer order": "x" * 120_000}.get(name)
    more = (
        None if env is None else {f"LONG{n}": env for n in range(1 if name == "long order" else 3)}
    )
    result = python(box, CALL + {**ACTS, **OVER_LAYERS}[name], fresh, extra_env=more)
    assert result.exit == 0, result.err.decode()


def difference(a: Record, b: Record) -> set[str]:
    return {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


def slot_of(box: Sandbox) -> slots.Slot:
    """The one that waits; the numbers of namespaces are used again."""
    plans = [plan for plan in box._plans.values() if plan.slots]
    (slot,) = [slot for plan in plans for slot in plan.slots._idle]
    assert isinstance(slot, slots.Slot)
    return slot


def is_allowed(name: str) -> bool:
    if re.match(OF_MACHINE, name):
        return True
    rest = re.sub("^(/proc|self|1)(?=/)", "", name)
    return any(re.match(pattern, rest) for pattern in NOT_LOOKED_AT)


BOXES: dict[str, dict[str, Any]] = {
    "default": {},
    "no filter": {"policy": Policy(seccomp="none")},
    "root in a user namespace": {"user": "root", "policy": Policy(seccomp="none")},
    "layers": {},
}


def layer(path: Path) -> list[Mount]:
    """Make a layer for DIRECTORIES, and return the mounts of what Python needs."""
    for directory in (*DIRECTORIES, "/proc"):
        (path / directory[1:]).mkdir(exist_ok=True, parents=True)
    for name in ("hostname", "group", "passwd"):
        (path / "etc" / name).write_text("of the layer")
    mounts = []
    for name in ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", sys.base_prefix):
        if os.path.islink(name):
            (path / name[1:]).symlink_to(os.readlink(name))
        elif os.path.exists(name) and not name.startswith("/usr/"):
            mounts.append(Mount.bind(name, name, read_only=True))
    return mounts


def box_of(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    require(not PYTHON.startswith("/tmp/"), "Python is in /tmp")
    if "namespace" in name:
        monkeypatch.setenv("SANDBOXLIB_BACKEND", "user_namespace")
    mounts = [Mount.tmpfs("/tmp"), *(layer(tmp_path / "layer") if name == "layers" else [])]
    root = Overlay(tmp_path / "layer") if name == "layers" else "/"
    return open_box(root, **{"network": "isolated", "extra_mounts": mounts, **BOXES[name]})


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOXES)
def test_nothing_carries_over(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MOST_SPARE", 0)  # one after the other in the same slot
    carried: dict[str, Record] = {}
    acts = [*ACTS, *OVER_LAYERS] if kind == "layers" else [*ACTS]
    assert kind == "layers" or not OVER_LAYERS.keys() & set(acts)
    with box_of(kind, tmp_path, monkeypatch) as box:
        noise: set[str] = set()
        before = record(box, True)
        for name in acts:  # what differs anyhow
            act(box, name, True)
            after = record(box, True)
            noise |= difference(before, after)
            before = after
        for _ in range(2):
            before = record(box, False)
        for name in acts:
            left: set[str] | None = None
            slot = slot_of(box)
            for _ in range(3):
                act(box, name, False)
                after = record(box, False)
                found = {n for n in difference(before, after) - noise if not is_allowed(n)}
                left = found if left is None else left & found
                said = {n: f"{before.get(n)} -> {after.get(n)}" for n in sorted(left)}
                before = after
                if not left:
                    break
            if name in SPOILING[kind]:
                assert slot is not slot_of(box), name
            elif name in ("nothing", "memory", "long order"):
                assert slot is slot_of(box), name
            if left:
                carried[name] = said
    assert carried == {}
