# SPDX-License-Identifier: Apache-2.0
"""A virtual machine: another kernel, with the files of this one.

qemu emulates it in software, so it takes no /dev/kvm. Its root is this machine's, read-only over
9p, below a tmpfs that takes what is written. Each controller of cgroups is in the unified
hierarchy.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

QEMU = "qemu-system-x86_64"
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "brd")

#: Runs first in the machine, by busybox.
INIT = """#!/bin/sh
mount -t proc none /proc
for module in {modules}; do
    words=
    [ $module != brd.ko ] || words="rd_nr=1 rd_size=524288"
    insmod /$module $words || echo "no $module"
done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 host /host
mount -t tmpfs -o mode=755 none /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work none /new
cd /new
umount /proc
exec switch_root /new /bin/sh -c {script}
"""

#: Then come the file systems of the kernel, a cgroup for the command, 512 MiB of swap in memory.
SET_UP = """
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
for directory in /dev/shm /run; do mount -t tmpfs -o mode=1777 none $directory; done
mkdir /run/tree
mount --bind {directory} /run/tree
mount -t tmpfs -o mode=1777 none /tmp
mkdir -p {directory}
mount --bind /run/tree {directory}
ln -sf /proc/self/fd /dev/fd
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /sys/fs/cgroup/of-tests
echo $$ >/sys/fs/cgroup/of-tests/cgroup.procs
echo "+cpu +cpuset +io +memory +pids" >/sys/fs/cgroup/cgroup.subtree_control
busybox mkswap /dev/ram0 >/dev/null
busybox swapon /dev/ram0
cd {directory}
export HOME=/tmp PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin {environment}
{command}
echo "== exit $?"
echo o >/proc/sysrq-trigger
sleep 60
"""


def _module_files(kernel: str, root: Path) -> list[Path]:
    """The files of MODULES and of what they depend on, each after those that it needs."""
    files = {
        path.name.partition(".ko")[0].replace("-", "_"): path
        for path in (root / "lib/modules" / kernel).rglob("*.ko")
    }
    found: list[Path] = []

    def add(name: str) -> None:
        path = files[name.replace("-", "_")]
        if path in found:
            return
        depends = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        for needed in depends[1].decode().split(",") if depends else ():
            if needed:
                add(needed)
        found.append(path)

    for name in MODULES:
        add(name)
    return found


def _archive(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An initramfs: files by name, each with its mode and content (cpio, the "newc" format)."""
    parts = []
    for number, (name, (mode, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))]):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        for part in (head, content):
            parts.append(part + b"\0" * (-len(part) % 4))
    return b"".join(parts)


def boot(kernel: Path, command: list[str], *, directory: Path, log: Path, timeout: float) -> str:
    """Boot a kernel, run a command as root in it, and return what it printed and "== exit N".

    kernel: Path of a vmlinuz-VERSION, with lib/modules/VERSION beside its directory, as packages of
        Debian have them.
    command: list of str.
    directory: Path, in which it runs, on this machine's files. /tmp, /run and /dev/shm are empty.
    log: Path, where the console goes; timeout: float, seconds.
    """
    version = kernel.name.partition("-")[2]
    modules = _module_files(version, kernel.parent.parent)
    kept = ("SANDBOXLIB_DEEP",)
    environment = " ".join(shlex.quote(f"{k}={os.environ[k]}") for k in kept if k in os.environ)
    script = SET_UP.format(
        directory=shlex.quote(str(directory)),
        environment=environment,
        command=shlex.join(command),
    )
    init = INIT.format(modules=" ".join(m.name for m in modules), script=shlex.quote(script))
    files = {
        **dict.fromkeys(("bin", "proc", "host", "changes", "new", "dev"), (0o40755, b"")),
        **{module.name: (0o100644, module.read_bytes()) for module in modules},
        "bin/busybox": (0o100755, Path("/bin/busybox").read_bytes()),
        "init": (0o100755, init.encode()),
    }
    words = ("sh", "mount", "umount", "mkdir", "insmod", "switch_root", "echo")
    files |= {f"bin/{word}": (0o120777, b"busybox") for word in words}
    initramfs = log.with_suffix(".cpio")
    initramfs.write_bytes(_archive(files))
    share = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
    argv = [QEMU, "-accel", "tcg,thread=multi", "-smp", "2", "-m", "3G", "-nographic", "-no-reboot"]
    argv += ["-net", "none", "-monitor", "none", "-virtfs", share]
    argv += ["-kernel", str(kernel), "-initrd", str(initramfs)]
    argv += ["-append", "console=ttyS0 panic=-1 loglevel=1 cgroup_no_v1=all"]
    with open(log, "wb") as console:
        subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            timeout=timeout,
            check=False,
        )
    return log.read_text(errors="replace")
