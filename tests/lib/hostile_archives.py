# SPDX-License-Identifier: Apache-2.0
"""Archives that no honest program would write, and what an ImageError says of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lib.image_maker import directory, file, hardlink, header, number, padded, pax, symlink

Make = Callable[[str, str], bytes]  # of a prefix for names ("rootfs/", or "") and the victim


def _sparse(real: int, pairs: list[tuple[int, int]], data: bytes = b"") -> bytes:
    """A file of GNU tar's type S; the map and the real size lie where ustar has a prefix."""
    text = b"".join(number(value, 12) for pair in pairs for value in pair).ljust(96, b"\0")
    tail = (text + b"\0" + number(real, 12)).ljust(114, b"\0")
    return header("rootfs/s", b"S", len(data), tail=tail) + padded(data)


def _old(prefix: str, *words: Any) -> bytes:
    block = bytearray(_sparse(*words))
    block[0:100] = f"{prefix}s".encode().ljust(100, b"\0")
    block[257:265] = b"ustar  \0"
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block[:512]):06o}\0 ".encode()
    return bytes(block)


LONG = "x" * 300
HOSTILE: dict[str, tuple[Make, str]] = {
    "an absolute name": (lambda p, v: file("/abs"), "is absolute"),
    "the victim's name": (lambda p, v: pax(path=f"{v}/new") + file("x"), "is absolute"),
    "a name that climbs": (lambda p, v: file(f"{p}../../victim/new"), r"contains '\.\.'"),
    "a name that goes down first": (lambda p, v: file(f"{p}a/../../b"), r"contains '\.\.'"),
    "nothing but two dots": (lambda p, v: directory(".."), r"contains '\.\.'"),
    "a pax path": (lambda p, v: pax(path=f"{p}../../victim/new") + file("x"), r"contains '\.\.'"),
    "a path for everybody": (
        lambda p, v: pax(b"g", path="../../victim/new") + file("x"),
        "a global header",
    ),
    "a GNU long name": (
        lambda p, v: file("L", f"{p}../../victim/new\0".encode(), kind=b"L") + file("x"),
        r"contains '\.\.'",
    ),
    "an empty name": (lambda p, v: file(""), "is empty"),
    "a NUL in a pax path": (lambda p, v: pax(path=f"{p}a\0b") + file("x"), "NUL byte"),
    "a name too long": (lambda p, v: pax(path=f"{p}{LONG}") + file("x"), "name too long"),
    "a path too long": (lambda p, v: pax(path=p + "d/" * 5000) + file("x"), "name too long"),
    "a link that climbs out": (lambda p, v: symlink(f"{p}l", "../../victim"), "leads out"),
    "a deeper link out": (lambda p, v: symlink(f"{p}a/b", "../c/../../../x"), "leads out"),
    "a link with an empty target": (lambda p, v: symlink(f"{p}l", ""), "leads nowhere"),
    "a file through a link": (
        lambda p, v: symlink(f"{p}l", v[:99])
        + pax(linkpath=v)
        + symlink(f"{p}l", "x")
        + file(f"{p}l/new"),
        "no directory",
    ),
    "a file through /proc": (
        lambda p, v: symlink(f"{p}l", "/proc/self/root") + file(f"{p}l/{v}/new"),
        "no directory",
    ),
    "a directory through a link": (
        lambda p, v: pax(linkpath=v) + symlink(f"{p}l", "x") + directory(f"{p}l/new/dir"),
        "no directory",
    ),
    "a loop of links": (
        lambda p, v: symlink(f"{p}a", "b") + symlink(f"{p}b", "a") + file(f"{p}a/x"),
        "no directory",
    ),
    "a hard link that climbs": (
        lambda p, v: hardlink(f"{p}h", f"{p}../../victim/file"),
        r"contains '\.\.'",
    ),
    "a hard link to the victim": (
        lambda p, v: pax(linkpath=f"{v}/file") + hardlink(f"{p}h", "x"),
        "is absolute",
    ),
    "a hard link through a link": (
        lambda p, v: pax(linkpath=v) + symlink(f"{p}l", "x") + hardlink(f"{p}h", f"{p}l/file"),
        "no directory",
    ),
    "a hard link to a directory": (
        lambda p, v: directory(f"{p}d") + hardlink(f"{p}h", f"{p}d"),
        "no file",
    ),
    "a hard link to nothing": (lambda p, v: hardlink(f"{p}h", f"{p}none"), "no file"),
    "a character device": (lambda p, v: header(f"{p}null", b"3"), "is a device"),
    "a block device": (lambda p, v: header(f"{p}sda", b"4"), "is a device"),
    "a FIFO": (lambda p, v: header(f"{p}fifo", b"6"), "a FIFO"),
    "an unknown type": (lambda p, v: header(f"{p}x", b"Z"), "or the like"),
    "a file that is a directory": (lambda p, v: file(f"{p}f") + file(f"{p}f/x"), "no directory"),
    "a negative size": (lambda p, v: header(f"{p}f", size=-1), "impossible size"),
    "a size beyond all limits": (lambda p, v: header(f"{p}f", size=1 << 62), "max_size"),
    "a size of 2^64": (lambda p, v: header(f"{p}f", size=1 << 64), "impossible size"),
    "an owner that is none": (lambda p, v: file(f"{p}f", uid=(1 << 32) - 1), "impossible owner"),
    "a negative owner": (lambda p, v: file(f"{p}f", gid=-5), "impossible owner"),
    "a time beyond all times": (lambda p, v: file(f"{p}f", mtime=1 << 80), "impossible size or"),
    "a pax time that is none": (lambda p, v: pax(mtime="x") + file(f"{p}f"), "not a time"),
    "a pax size that is none": (lambda p, v: pax(size="-5") + file(f"{p}f"), "not a number"),
    "a pax header of 1 GiB": (lambda p, v: header("x", b"x", 1 << 30), "extended header"),
    "a negative pax header": (lambda p, v: header("x", b"x", -512), "extended header"),
    "pax headers without end": (lambda p, v: pax(comment="x") * 1000, "in a row"),
    "a pax record of no length": (lambda p, v: file("x", b"0 a=b\n", kind=b"x"), "pax header"),
    "a pax record too long": (lambda p, v: file("x", b"99 a=b\n", kind=b"x"), "pax header"),
    "a damaged checksum": (lambda p, v: b"1" + file("f")[1:], "no header of a tar"),
    "text for a tar": (lambda p, v: b"no tar at all " * 100, "no header of a tar|not an octal"),
    "a cut header": (lambda p, v: file(f"{p}f")[:300], "truncated"),
    "cut content": (lambda p, v: file(f"{p}f", bytes(5000))[:2000], "truncated"),
    "a sparse file beyond limits": (lambda p, v: _old(p, 1 << 50, [(1 << 50, 0)]), "max_size"),
    "a sparse map that overlaps": (
        lambda p, v: _old(p, 1024, [(0, 512), (100, 512)], bytes(1024)),
        "impossible map",
    ),
    "a sparse map past its end": (
        lambda p, v: _old(p, 100, [(0, 512)], bytes(512)),
        "impossible map",
    ),
    "a sparse map without data": (lambda p, v: _old(p, 512, [(0, 512)]), "impossible map"),
    "a negative sparse size": (lambda p, v: _old(p, -1, []), "impossible map"),
    "a pax sparse map too long": (
        lambda p, v: pax(GNU__sparse__major="1", GNU__sparse__realsize="5")
        + file(f"{p}f", b"999999999\n".ljust(512, b"1")),
        "map",
    ),
}
CUT = {"a cut header", "cut content"}
