# SPDX-License-Identifier: Apache-2.0
"""A program for inside a sandbox: it records all that it can see there, as JSON {name: value}.

It records every field of every file of /proc and /sys, every namespace, and the answers of system
calls about pid 1, keyrings, IPC objects and the network, and the directories that its arguments
name. test_carries_over.py compares two records.
"""

import ctypes
import fcntl
import json
import os
import resource
import socket
import struct
import sys
import time

MOST = 200_000  # bytes of one file
# These files block, never end, or do something when they are read; or they are large, and the same
# in every sandbox.
SKIPPED = (
    "kmsg kcore kpagecount kpageflags kpagecgroup kallsyms vmallocinfo slabinfo timer_list pagemap "
    "mem clear_refs trace_pipe trace_marker page_owner sched_debug interrupts zoneinfo config.gz "
    "environ auxv cmdline maps smaps smaps_rollup numa_maps stack syscall wchan"
).split()
#: Large directories that are the same for every process.
FAR = ("/proc/fs", "/proc/irq", "/proc/bus", "/proc/acpi")
found: dict[str, str] = {}
libc = ctypes.CDLL(None, use_errno=True)


def call(number: int, *args: object) -> str:
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(ctypes.c_long(number), *args)
    return str(result) if result >= 0 else f"errno {ctypes.get_errno()}"


def label(line: str, number: int) -> str:
    """The name at the start of a line, or the number of the line."""
    first = line.split(maxsplit=1)[0] if line.strip() else ""
    return first if first.endswith(":") else str(number)


def see_file(path: str, name: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        found[name] = f"open: {error.errno}"
        return
    try:
        text = b""
        while len(text) < MOST and (chunk := os.read(fd, 65536)):
            text += chunk
    except OSError as error:
        found[name] = f"read: {error.errno}"
        return
    finally:
        os.close(fd)
    for number, line in enumerate(text.decode(errors="replace").splitlines()):
        for index, word in enumerate(line.split()):
            found[f"{name}:{label(line, number)}:{index}"] = word


def is_number(name: str) -> bool:
    """True for numbers, and for directories whose entries are processes, threads or descriptors."""
    return name.isdigit() or name in ("task", "fd", "map_files", "fdinfo")


def see_tree(top: str, name: str, depth: int = 12) -> None:
    try:
        entries = sorted(os.scandir(top), key=lambda entry: entry.name)
    except OSError as error:
        found[name] = f"list: {error.errno}"
        return
    if not top.startswith("/proc/self/fd"):
        found[f"{name}/"] = " ".join(e.name for e in entries if not e.name.isdigit())
    for entry in entries:
        path, inner = f"{top}/{entry.name}", f"{name}/{entry.name}"
        try:
            if entry.is_symlink():
                found[inner] = os.readlink(path)
            elif entry.is_dir(follow_symlinks=False):
                if depth and path not in FAR and not is_number(entry.name):
                    see_tree(path, inner, depth - 1)
            elif entry.is_file(follow_symlinks=False) and entry.name not in SKIPPED:
                status = os.stat(path)
                if top.startswith("/sys") and not status.st_mode & 0o004:
                    continue  # to read zram-control/hot_add makes a device
                found[f"{inner} owner"] = f"{status.st_mode:o} {status.st_uid} {status.st_gid}"
                see_file(path, inner)
        except OSError as error:
            found[inner] = f"{error.errno}"


def see_process(pid: str, name: str) -> None:
    see_tree(f"/proc/{pid}", name)
    number = int(pid) if pid != "self" else 0
    for which in range(16):
        try:
            found[f"{name} rlimit {which}"] = str(resource.prlimit(number, which))
        except (OSError, ValueError) as error:
            found[f"{name} rlimit {which}"] = str(error)
    buffer = ctypes.create_string_buffer(128)
    found[f"{name} sched"] = call(315, number, buffer, 56, 0) + buffer.raw[:56].hex()
    found[f"{name} nice"] = call(140, 0, number)
    found[f"{name} ioprio"] = call(252, 1, number)
    found[f"{name} cpus"] = str(sorted(os.sched_getaffinity(number)))
    found[f"{name} pgrp"] = str(os.getpgid(number) - (number or os.getpid()))
    found[f"{name} sid"] = call(124, number)


def see_keys() -> None:
    """Record the keyrings (keyctl(2)); 22 is KEYCTL_GET_PERSISTENT."""
    keys = {"session": -3, "user": -4, "user session": -5, "thread": -1, "process": -2}
    for name, key in keys.items():
        buffer = ctypes.create_string_buffer(4096)
        found[f"key {name} serial"] = call(250, 0, key, 0)
        answer = call(250, 6, key, buffer, 4096)
        found[f"key {name} is"] = answer + buffer.value.decode(errors="replace")
        answer = call(250, 11, key, buffer, 4096)
        found[f"key {name} has"] = answer
    found["key persistent"] = call(250, 22, -1, -2)


def see_ipc() -> None:
    buffer = ctypes.create_string_buffer(4096)
    for name, number in (("shm", 31), ("sem", 66), ("msg", 71)):
        for command in (14, 3, 19, 12):
            args = (0, 0, command, buffer) if name == "sem" else (0, command, buffer)
            found[f"ipc {name} {command}"] = call(number, *args) + buffer.raw[:64].hex()


def see_network() -> None:
    for kind in (18, 22, 26, 30, 78, 82):  # links, addresses, routes, neighbours, rules, labels
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s:
                s.bind((0, 0))
                s.settimeout(2)
                s.send(struct.pack("=IHHII", 32, kind, 0x301, 1, 0) + bytes(16))
                answer = s.recv(65536)
                found[f"netlink {kind}"] = answer[16:].hex() if kind != 18 else str(len(answer))
        except OSError as error:
            found[f"netlink {kind}"] = str(error)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for name, request in (("flags", 0x8913), ("mtu", 0x8921), ("qlen", 0x8942)):
            try:
                answer = fcntl.ioctl(s, request, struct.pack("16s240x", b"lo"))
                found[f"lo {name}"] = answer[16:24].hex()
            except OSError as error:
                found[f"lo {name}"] = str(error)
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as s:
                s.bind(("", 4711))
                found[f"bind {family}"] = "ok"
        except OSError as error:
            found[f"bind {family}"] = str(error)


def see_directory(path: str) -> None:
    """Record a directory, and the file system that it is in, but for the entries."""
    status, system = os.stat(path), os.statvfs(path)
    found[f"{path} is"] = f"{status.st_mode:o} {status.st_uid} {status.st_gid} {status.st_size}"
    found[f"{path} number"] = f"{status.st_dev} {status.st_ino} {status.st_nlink}"
    found[f"{path} time"] = str(status.st_mtime_ns)
    found[f"{path} has"] = " ".join(sorted(os.listdir(path)))
    found[f"{path} room"] = f"{system.f_bfree} {system.f_ffree}"
    found[f"{path} attributes"] = " ".join(os.listxattr(path))


for directory in sys.argv[1:]:
    see_directory(directory)
see_tree("/proc", "/proc")
see_tree("/sys/class/net", "/sys/class/net")
see_tree("/sys/devices/virtual/net", "/sys/devices/virtual/net")
for pid in ("1", "self"):
    see_process(pid, pid)
see_keys()
see_ipc()
see_network()
time.sleep(0.2)  # a netlink socket counts as used until a grace period of RCU is over
found["uname"] = " ".join(os.uname())
found["umask"] = str(os.umask(0))
found["groups"] = str(os.getgroups())
found["personality"] = call(135, 0xFFFFFFFF)
found["timerslack"] = call(157, 30, 0, 0, 0, 0)
found["hello"] = call(157, 21, 0, 0, 0, 0)
json.dump(found, sys.stdout)
