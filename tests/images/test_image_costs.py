# SPDX-License-Identifier: Apache-2.0
"""The time to unpack an image is linear in its size, whatever the image says.

Costs are the CPU time of the child, which a busy machine changes little, of a hostile image and of
an honest one that is as large. A size is that of the archive, before it is compressed.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import os
import random
import resource
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lib.image_maker import (
    END,
    Layout,
    aci,
    directory,
    docker,
    file,
    hardlink,
    header,
    number,
    padded,
    pax,
    symlink,
    zstd,
)
from lib.machine import require

import sandboxlib
from sandboxlib import ImageError, SandboxError, UnsupportedError, load
from sandboxlib._images import unpack
from sandboxlib._images.child import documents, extract
from sandboxlib._images.child import layers as _layer
from sandboxlib.load import oci

SIZE = 2 << 20  # bytes of an archive
FLOOR = 0.1  # seconds of CPU: below it a ratio says nothing
MOST = 10  # times an honest image


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A TMPDIR of the test's own, in which nothing is left."""
    try:
        unpack.executor()
    except UnsupportedError as error:
        require(False, str(error))
    with in_memory(tmp_path) as top:
        monkeypatch.setattr(tempfile, "tempdir", str(top))
        yield top
        assert os.listdir(top) == []


@contextlib.contextmanager
def in_memory(otherwise: Path) -> Iterator[Path]:
    """A directory on a tmpfs: a busy disk would be counted as work of the image's."""
    above = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else otherwise
    top = Path(tempfile.mkdtemp(dir=above))
    yield top
    shutil.rmtree(top)


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cost(image: Path) -> tuple[float, str]:
    """The seconds to unpack an image and remove it, and the message if it is refused."""
    said = ""
    before = cpu()
    try:
        with load.open_image(image, timeout=120):
            pass
    except ImageError as error:
        said = str(error)
    return cpu() - before, said


def filled(make: Callable[[int], bytes], size: int = 0) -> bytes:
    """make(0) + make(1) + ... of that size."""
    parts, total, size = [], 0, size or SIZE
    for at in range(1 << 30):
        parts.append(make(at))
        total += len(parts[-1])
        if total >= size:
            return b"".join(parts)
    raise AssertionError


def honest(size: int) -> bytes:
    """As in a root directory: directories, files of up to 4 KiB, links."""

    def make(at: int) -> bytes:
        top = f"usr/share/d{at // 30}"
        if at % 30 == 0:
            return directory(top)
        if at % 30 == 28:
            return symlink(f"{top}/link", "f1")
        if at % 30 == 29:
            return hardlink(f"{top}/hard", f"{top}/f1")
        return file(f"{top}/f{at % 30}", b"text of the file\n" * (at * 37 % 240))

    return filled(make, size)


@pytest.fixture(scope="module")
def honest_cost(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """By size; what the start of a child takes is in it."""
    found = {}
    for size in (1 << 16, SIZE):
        layout = Layout(honest(size) + END).directory(tmp_path_factory.mktemp("honest") / "x")
        with pytest.MonkeyPatch.context() as patch, in_memory(layout) as top:
            patch.setattr(tempfile, "tempdir", str(top))
            found[size] = min(cost(layout)[0] for _ in range(2))
    return found


# ---- layers ----------------------------------------------------------------------------------


def long(data: bytes) -> bytes:
    """Records of a pax header that image_maker's keywords cannot say."""
    return file("pax", data, kind=b"x")


def record(text: bytes) -> bytes:
    size = len(text) + 2
    while len(str(size)) + len(text) + 2 != size:
        size += 1
    return f"{size} ".encode() + text + b"\n"


def sparse_without_newline(at: int) -> bytes:
    content = b"1" * 900_000
    head = pax(GNU__sparse__major="1", GNU__sparse__realsize="5")
    return head + file(f"s{at}", content)


def sparse_of_lines(at: int) -> bytes:
    count = 40_000
    lines = b"%d\n" % count + b"0\n0\n" * count
    head = pax(GNU__sparse__major="1", GNU__sparse__realsize="5")
    return head + file(f"s{at}", lines + bytes(-len(lines) % 512))


def sparse_in_the_header(at: int) -> bytes:
    text = b"GNU.sparse.map=" + b",".join([b"0,0"] * 250_000)[:1_000_000]
    return long(record(b"GNU.sparse.size=5") + record(text)) + file(f"s{at}")


def old_sparse(at: int) -> bytes:
    head = bytearray(header(f"s{at}", b"S", 0))
    head[386:500] = bytes(96) + b"\1" + number(5, 12) + bytes(5)
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    blocks = (number(0, 12) * 42 + b"\1").ljust(512, b"\0") * 1900
    return bytes(head) + blocks + (number(0, 12) * 42).ljust(512, b"\0")


def sparse_of_bytes(at: int) -> bytes:
    """Each byte of content has a place of its own."""
    pairs = b"".join(b"%d\n1\n" % (n * 2) for n in range(40_000))
    lines = b"40000\n" + pairs
    content = lines + bytes(-len(lines) % 512) + b"x" * 40_000
    return pax(GNU__sparse__major="1", GNU__sparse__realsize="80000") + file(f"s{at}", content)


def chain(depth: int) -> str:
    return "d/" * depth


LAYERS: dict[str, Callable[[], list[bytes]]] = {
    "a sparse map without a newline": lambda: [filled(sparse_without_newline)],
    "a sparse map of many lines": lambda: [filled(sparse_of_lines)],
    "a sparse map in the header": lambda: [filled(sparse_in_the_header)],
    "an old sparse map": lambda: [filled(old_sparse)],
    "a sparse file of single bytes": lambda: [filled(sparse_of_bytes)],
    "opaque again and again": lambda: [
        filled(lambda n: file(f"d/{n}"), SIZE // 2)
        + filled(lambda n: file("d/.wh..wh..opq"), SIZE // 2)
    ],
    "opaque over what is below": lambda: [
        filled(lambda n: file(f"d/{n}"), SIZE // 2),
        filled(lambda n: file("d/.wh..wh..opq") + file(f"d/x{n}"), SIZE // 2),
    ],
    "opaque from the bottom to the top": lambda: [
        filled(lambda n: directory(chain(n % 40 + 1)) + file(f"{chain(n % 40 + 1)}{n}"), SIZE // 2)
        + filled(lambda n: file(f"{chain(40 - n % 40)}.wh..wh..opq"), SIZE // 2)
    ],
    "opaque from the top to the bottom": lambda: [
        filled(lambda n: directory(chain(n % 40 + 1)) + file(f"{chain(n % 40 + 1)}{n}"), SIZE // 2)
        + filled(lambda n: file(f"{chain(n % 40 + 1)}.wh..wh..opq"), SIZE // 2)
    ],
    "one whiteout again and again": lambda: [
        filled(lambda n: file(f"d/{n}"), SIZE // 2) + filled(lambda n: file(".wh.d"), SIZE // 2)
    ],
    "whiteouts of nothing": lambda: [filled(lambda n: file(f"a/b/.wh.{n}"))],
    "global headers": lambda: [
        file("g", b"".join(record(b"GNU.sparse.k%d=1" % n) for n in range(20_000)), kind=b"g")
        + filled(lambda n: file(f"{n}"))
    ],
    "global headers of owners": lambda: [filled(lambda n: pax(b"g", uid="5") + file(f"{n}"))],
    "a name for all": lambda: [
        pax(b"g", path="x" * 900_000) + filled(lambda n: file(f"{n}"), SIZE // 2)
    ],
    "many pax records": lambda: [filled(lambda n: long(b"6 a=b\n" * 170_000) + file(f"{n}"))],
    "as many of them as there may be": lambda: [
        filled(lambda n: long(b"6 a=b\n" * 100) * 15 + file(f"{n}"))
    ],
    "pax headers of the longest": lambda: [
        filled(lambda n: long(record(b"comment=" + b"x" * 60_000)) * 15 + file(f"{n}"))
    ],
    "long names in a row": lambda: [
        filled(lambda n: file("L", b"n" * 4000, kind=b"L") * 15 + file(f"{n}"))
    ],
    "names of slashes": lambda: [filled(lambda n: pax(path="a" + "/" * 4000 + str(n)) + file("x"))],
    "names of dots": lambda: [filled(lambda n: pax(path="./" * 2000 + str(n)) + file("x"))],
    "deep directories, named": lambda: [
        b"".join(pax(path=chain(n)) + directory("x") for n in range(1, 400))
        + filled(lambda n: pax(path=f"{chain(400)}{n}") + file("x"), SIZE - 400_000)
    ],
    "deep directories by a link": lambda: [
        b"".join(pax(path=chain(n)) + directory("x") for n in range(1, 400))
        + b"".join(
            pax(linkpath=(f"l{n - 1}/" if n else "") + chain(95)) + symlink(f"l{n}", "x")
            for n in range(4)
        )
        + filled(lambda n: file(f"l3/{n}"), SIZE - 400_000)
    ],
    "directories that nobody names": lambda: [
        filled(lambda n: pax(path=f"{n}/" + chain(400)) + file("x"))
    ],
    "as many directories as nobody needs to name": lambda: [
        filled(lambda n: pax(path=f"{n}/a/b/c/x") + file("x"))
    ],
    "deep and new each time": lambda: [
        filled(lambda n: pax(path=f"{chain(300)}{n}/x") + file("x"))
    ],
    "hard links": lambda: [file("f") + filled(lambda n: hardlink(f"{n}", "f"), 1 << 20)],
    "hard links from far": lambda: [
        b"".join(pax(path=chain(n)) + directory("x") for n in range(1, 300))
        + file("f")
        + filled(lambda n: pax(path=f"{chain(300)}{n}") + hardlink("x", "f"), 1 << 20)
    ],
    "links that lead to links": lambda: [
        directory("end")
        + b"".join(symlink(f"l{n}", f"l{n + 1}" if n < 38 else "end") for n in range(39))
        + filled(lambda n: symlink("end/gone", "x") + file(f"l0/{n}") + file("l0/gone"))
    ],
    "long links to long links": lambda: [
        directory("d")
        + b"".join(
            pax(linkpath="d/../" * 49 + (f"l{n + 1}" if n < 38 else "d")) + symlink(f"l{n}", "x")
            for n in range(39)
        )
        + filled(lambda n: symlink("s", "x") + file("s") + file(f"l0/{n}"))
    ],
    "links with the longest targets": lambda: [
        filled(lambda n: pax(linkpath="d/" * 90 + "x" * 3000) + symlink(f"l{n}", "x"))
    ],
    "one thing after another": lambda: [
        filled(lambda n: directory("d") + file("d/x") + file("d") + symlink("d", "x"))
    ],
    "a directory in many forms": lambda: [
        filled(lambda n: directory("d") + file(f"d/{n}"), SIZE // 2)
        + filled(lambda n: directory("d"), SIZE // 2)
    ],
    "nothing but headers": lambda: [filled(lambda n: file(f"{n}"))],
    "binary numbers": lambda: [
        filled(lambda n: file(f"{n}", mtime=1 << 33, uid=1 << 22, gid=1 << 23))
    ],
    "signed checksums": lambda: [filled(_signed)],
}


def _signed(at: int) -> bytes:
    block = bytearray(header(b"\xff\xfe" * 40 + b"%d" % at))
    block[148:156] = b" " * 8
    total = sum(block) - 256 * sum(byte > 127 for byte in block)
    block[148:156] = f"{total % (1 << 18):06o}\0 ".encode()
    return bytes(block)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_a_hostile_layer_costs_no_more_than_an_honest_one(
    tmp_path: Path, honest_cost: dict[int, float], name: str
) -> None:
    layers = [layer + END for layer in LAYERS[name]()]
    assert SIZE // 2 - 10_000 <= sum(map(len, layers)) <= 2 * SIZE
    took, said = cost(Layout(*layers).directory(tmp_path / "x"))
    allowed = MOST * max(FLOOR, honest_cost[SIZE])
    print(f"{name}: {took:.2f} s of {allowed:.2f} s; {said[:200]}")
    assert took < allowed, said


# ---- documents -------------------------------------------------------------------------------


def _index(data: bytes) -> Layout:
    layout = Layout(file("x") + END)
    layout.index = data
    return layout


def _with_layers(count: int, *layers: bytes) -> Layout:
    layout = Layout(*layers)
    layout.descriptors *= count // len(layers)
    layout.config["rootfs"]["diff_ids"] *= count // len(layers)
    return layout


DOCUMENTS: dict[str, Callable[[], Layout]] = {
    "brackets": lambda: _index(b"[" * SIZE),
    "brackets that close": lambda: _index(b"[" * 900 + b"]" * 900),
    "many brackets": lambda: _index(b"[" + b",".join([b"[" * 90 + b"]" * 90] * 11_000) + b"]"),
    "many objects": lambda: _index(b"[" + b",".join([b'{"a":1}'] * 260_000) + b"]"),
    "many keys": lambda: _index(b"{" + b",".join(b'"%d":1' % n for n in range(180_000)) + b"}"),
    "a key again and again": lambda: _index(b"{" + b",".join([b'"a":1'] * 340_000) + b"}"),
    "a number of two million digits": lambda: _index(b'{"a":' + b"9" * SIZE + b"}"),
    "a fraction of two million digits": lambda: _index(b'{"a":0.' + b"9" * SIZE + b"}"),
    "an exponent of two million digits": lambda: _index(b'{"a":1e' + b"9" * SIZE + b"}"),
    "many fractions": lambda: _index(b"[" + b",".join([b"1.5e-300"] * 230_000) + b"]"),
    "one long word": lambda: _index(b'{"a":"' + b"\\u0041" * (SIZE // 6) + b'"}'),
    "an index of many images": lambda: _index(
        json.dumps({"manifests": [Layout.describe(b"")] * 14_000}).encode()
    ),
    "25,000 layers": lambda: _with_layers(25_000, file("x") + END),
    "the same layers again": lambda: _with_layers(500, honest(1 << 18) + END),
    "500 small layers": lambda: Layout(*(file(f"{n}", bytes(3000)) + END for n in range(500))),
    "a passwd of two million lines": lambda: Layout(file("etc/passwd", b"\n" * SIZE), User="x"),
    "a passwd of colons": lambda: Layout(file("etc/passwd", b":" * SIZE), User="x"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_hostile_document_costs_no_more_than_an_honest_image(
    tmp_path: Path, honest_cost: dict[int, float], name: str
) -> None:
    took, said = cost(DOCUMENTS[name]().directory(tmp_path / "x"))
    allowed = MOST * max(FLOOR, honest_cost[SIZE])
    print(f"{name}: {took:.2f} s of {allowed:.2f} s; {said[:200]}")
    assert took < allowed, said


@pytest.mark.slow
def test_a_tar_of_very_many_files(tmp_path: Path, honest_cost: dict[int, float]) -> None:
    rest = filled(lambda n: file(f"{n}") + symlink(f"l{n}", f"l{n - 1}"))
    layout = Layout(file("x") + END).tar(tmp_path / "x.tar")
    layout.write_bytes(rest + layout.read_bytes())
    tagged = docker(tmp_path / "d.tar", file("x") + END)
    for image in (layout, tagged):
        took, said = cost(image)
        assert took < MOST * max(FLOOR, honest_cost[SIZE]), said
        assert not said
    assert oci.is_oci_image(layout)


# ---- limits that say so ----------------------------------------------------------------------


def test_layers_are_counted_first(tmp_path: Path) -> None:
    many = documents.MAX_LAYERS + 1
    docker_many = docker(tmp_path / "d.tar", *[file("x") + END] * many)
    for image in (_with_layers(many, file("x") + END).directory(tmp_path / "x"), docker_many):
        with pytest.raises(ImageError, match=f"{many} layers, more than 500"):
            load.open_image(image).__enter__()


def test_a_layer_may_be_there_some_times(tmp_path: Path) -> None:
    one = file("x", os.urandom(1 << 20)) + END
    with load.open_image(_with_layers(4, one).directory(tmp_path / "x")):
        pass
    empty = Layout(END, file("x") + END)
    empty.descriptors = empty.descriptors[:1] * 300 + empty.descriptors[1:]
    ids = empty.config["rootfs"]["diff_ids"]
    empty.config["rootfs"]["diff_ids"] = ids[:1] * 300 + ids[1:]
    with load.open_image(empty.directory(tmp_path / "y")):
        pass
    with pytest.raises(ImageError, match="repeats the same layers too often"):
        load.open_image(_with_layers(40, one).directory(tmp_path / "z")).__enter__()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (pax(path=chain(_layer.MAX_DEPTH + 2) + "x") + file("x"), "directories deep"),
        (pax(linkpath="d/" * 600) + symlink("l", "x"), "names far"),
        (filled(lambda n: pax(path=f"{n}/{chain(400)}x") + file("x"), 20_000), "no member names"),
        (pax(path="n" * 5000) + file("x"), "name too long"),
        (file("L", b"n" * 5000, kind=b"L") + file("x"), "name too long"),
        (pax(b"g", size="5") + file("x"), "a global header"),
        (long(b"6 a=b\n" * 101) + file("x"), "more than 100 records"),
    ],
)
def test_what_would_cost_too_much_is_refused(tmp_path: Path, layer: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load.open_image(Layout(layer + END).directory(tmp_path / "x")).__enter__()


def test_deep_directories_that_links_make_are_refused(tmp_path: Path) -> None:
    layer = b""
    for n in range(8):
        below = f"l{n - 1}/" if n else ""
        layer += b"".join(file(f"{n}-{each}") for each in range(30))
        layer += pax(path=f"{below}{chain(90)}x") + file("x")
        layer += pax(linkpath=f"{below}{chain(90)}") + symlink(f"l{n}", "x")
    with pytest.raises(ImageError, match="directories deep"):
        load.open_image(Layout(layer + END).directory(tmp_path / "x")).__enter__()


def test_honest_trees_are_within_the_limits(tmp_path: Path) -> None:
    layer = pax(path=chain(450) + "x") + file("x", b"deep") + END
    layer = b"".join(file(f"a/b/c/d{n}/e/f{n}", b"x") for n in range(300)) + layer
    with load.open_image(Layout(layer).directory(tmp_path / "x")) as (root, _):
        assert Path(root, chain(450), "x").read_bytes() == b"deep"


# ---- compression -----------------------------------------------------------------------------


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def _named_gzip(data: bytes) -> bytes:
    packed = zlib.compress(data, 1)[2:-4]
    head = b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * SIZE + b"\0"
    return head + packed + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


MINE = file("manifest", b"{}") + directory("rootfs") + file("rootfs/x", b"hello") + END
COMPRESSED: dict[str, Callable[[], bytes]] = {
    "empty members of gzip": lambda: _gzip(b"") * (SIZE // 20) + _gzip(MINE),
    "small members of gzip": lambda: filled(lambda n: _gzip(MINE[n : n + 1]))
    and b"".join(_gzip(MINE[n : n + 1]) for n in range(len(MINE))),
    "padding of gzip": lambda: _gzip(MINE) + bytes(SIZE),
    "padding between members": lambda: _gzip(MINE[:600]) + bytes(SIZE) + _gzip(MINE[600:]),
    "a long name in gzip": lambda: _named_gzip(MINE),
    "zeros in gzip": lambda: gzip.compress(MINE + bytes(15 << 20), 9),
    "empty streams of bzip2": lambda: bz2.compress(b"") * (SIZE // 14) + bz2.compress(MINE),
    "small streams of bzip2": lambda: b"".join(
        bz2.compress(MINE[n : n + 1]) for n in range(len(MINE))
    ),
    "zeros in bzip2": lambda: bz2.compress(MINE + bytes(15 << 20)),
    "empty streams of xz": lambda: lzma.compress(b"") * (SIZE // 32) + lzma.compress(MINE),
    "small streams of xz": lambda: b"".join(
        lzma.compress(MINE[n : n + 1]) for n in range(len(MINE))
    ),
    "small frames of zstd": lambda: b"".join(zstd(MINE[n : n + 1]) for n in range(len(MINE))),
    "skippable frames of zstd": lambda: (
        zstd(MINE[:9]) + b"\x50\x2a\x4d\x18\0\0\0\0" * (SIZE // 8) + zstd(MINE[9:])
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPRESSED)
def test_hostile_compression_costs_no_more_than_an_honest_image(
    tmp_path: Path, honest_cost: dict[int, float], name: str
) -> None:
    image = tmp_path / "x.aci"
    image.write_bytes(COMPRESSED[name]())
    took, said = cost(image)
    allowed = MOST * max(FLOOR, honest_cost[SIZE])
    print(f"{name}: {took:.2f} s of {allowed:.2f} s; {said[:200]}")
    assert took < allowed, said
    assert not said


def test_members_of_gzip_follow_one_another(tmp_path: Path) -> None:
    data = MINE[:-1024] + file("rootfs/long", random.Random(1).randbytes(300_000)) + END
    for step in (1, 7, 1000, 100_000):
        cuts = [data[n : n + step] for n in range(0, len(data) if step > 1 else 2000, step)]
        cuts += [data[2000:]] if step == 1 else []
        image = tmp_path / "x.aci"
        image.write_bytes(b"".join(_gzip(cut) + bytes(step % 9) for cut in cuts))
        if step == 7:
            cuts = [*cuts[:500], b"".join(cuts[500:])]
            image.write_bytes(b"".join(map(_gzip, cuts)))
        with load.open_image(image) as (root, _):
            assert Path(root, "long").stat().st_size == 300_000
    for bad in (b"garbage", b"\x1f\x8b\x08", b"\0\0x"):
        image.write_bytes(_gzip(data) + bad)
        with pytest.raises(ImageError, match=r"damaged|truncated"):
            load.open_image(image).__enter__()


# ---- mutations -------------------------------------------------------------------------------


def specimen(p: str = "") -> bytes:
    """Something of all that a tar may have. p: what the names begin with."""
    old = bytearray(header(f"{p}old", b"S", 3))
    pairs = (number(0, 12) + number(3, 12)).ljust(96, b"\0")
    old[386:500] = pairs + b"\0" + number(9, 12) + bytes(5)
    old[148:156] = b" " * 8
    old[148:156] = f"{sum(old):06o}\0 ".encode()
    lines = b"2\n0\n3\n8\n1\n".ljust(512, b"\0")
    long_name = f"{p}d/gnu{'n' * 150}\0".encode()
    return b"".join(
        [
            pax(b"g", uid="5"),
            directory(f"{p}d", 0o1777),
            file(f"{p}d/f", b"content" * 90, mode=0o4755, uid=7),
            pax(path=f"{p}d/e/long{'n' * 200}", mtime="1.5", comment="x") + file("x", b"y"),
            file("L", long_name, kind=b"L") + file("x", b"z"),
            symlink(f"{p}l", "d"),
            file(f"{p}l/through", b"1"),
            hardlink(f"{p}h", f"{p}d/f"),
            bytes(old) + padded(b"abc"),
            pax(GNU__sparse__major="1", GNU__sparse__realsize="9", GNU__sparse__name=f"{p}new")
            + file("s", lines + b"abcd"),
            pax(GNU__sparse__map="0,2", GNU__sparse__size="5") + file(f"{p}t", b"ab"),
            file(f"{p}d/.wh.gone"),
            file(f"{p}d/.wh..wh..opq"),
            file(f"{p}etc/passwd", b"me:x:8:9:::\n"),
            END,
        ]
    )


#: Runs in the place of the child: it unpacks mutations, each in a process of its own.
DRIVER = """
import json, os, random, re, resource, sys, types
settings = json.loads(sys.argv[1])
if settings["job"] == "empty":
    sys.exit(os.execv(sys.executable, [sys.executable, "-I", "-S", "-B", EXTRACT, sys.argv[1]]))
package = types.ModuleType("unpacker")
package.__path__ = [os.path.dirname(EXTRACT)]
sys.modules["unpacker"] = package
from unpacker import extract as _extract, roots as _roots
import bz2, ctypes, lzma
base = os.pread(0, 1 << 20, 0)
wrong, costs, refused = [], [], 0
for seed in range(FIRST, FIRST + COUNT):
    rng = random.Random(seed)
    data = bytearray(base)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        at = rng.randrange(len(data))
        kind = rng.randrange(6)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.choice((1, 7, 512))]
        elif kind == 2:
            data[at:at] = data[rng.randrange(len(data)) :][: rng.choice((1, 512, 1024, 5000))]
        elif kind == 3:
            block = at // 512 * 512
            data[block + 124 : block + 136] = rng.choice(
                (b"77777777777\\0", b"\\x80" + bytes(11), b"\\xff" * 12, b"00000001000\\0")
            )
        elif kind == 4:
            block = at // 512 * 512
            data[block + 156 : block + 157] = rng.choice(b"0 1 2 5 7 g x X L K S".split())
        else:
            data[at : at + 1] = bytes([rng.choice(b"/.0179, \\n\\0\\xff")])
    if rng.random() < 0.9:  # what is behind the checksum is of interest
        for block in range(0, len(data) - 511, 512):
            if data[block + 257 : block + 262] == b"ustar":
                data[block + 148 : block + 156] = b" " * 8
                data[block + 148 : block + 156] = b"%06o\\0 " % sum(data[block : block + 512])
    image = os.memfd_create("image")
    os.write(image, data)
    place = f"/dev/target/{seed}"
    os.mkdir(place)
    said, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(image, 0)
        os.dup2(say, 1)
        at = os.stat(place)
        _roots.TARGET = place
        sys.argv[1] = json.dumps({**settings, "target": [at.st_dev, at.st_ino]})
        _extract.main()
        os._exit(0)
    os.close(say)
    os.close(image)
    answer = b""
    while more := os.read(said, 1 << 16):
        answer += more
    os.close(said)
    _, status, usage = os.wait4(pid, 0)
    costs.append(usage.ru_utime + usage.ru_stime)
    try:
        keys = json.loads(answer).keys()
        refused += keys == {"error"}
        if status or keys not in ({"error"}, {"value", "ids"}):
            wrong.append((seed, status, answer[:300].decode()))
    except ValueError:
        wrong.append((seed, status, answer[:300].decode("latin-1")))
told = {"worst": max(costs), "mean": sum(costs) / COUNT, "wrong": wrong[:5], "refused": refused}
print(json.dumps({"error": json.dumps(told)}))
"""


@pytest.mark.parametrize(
    ("first", "count"), [(0, 200), pytest.param(200, 5000, marks=pytest.mark.slow)]
)
def test_mutated_images_cost_no_more_than_honest_ones(
    tmp_path: Path, honest_cost: dict[int, float], first: int, count: int
) -> None:
    driver = tmp_path / "driver.py"
    values = {"EXTRACT": extract.__file__, "FIRST": first, "COUNT": count}
    lines = [f"{name} = {value!r}\n" for name, value in values.items()]
    driver.write_text("".join(lines) + DRIVER)
    base = file("manifest", b"{}") + directory("rootfs")
    image = tmp_path / "x.aci"
    image.write_bytes(base + specimen("rootfs/"))
    before, extract.__file__ = extract.__file__, str(driver)
    try:
        with pytest.raises(ImageError) as caught:
            load.open_image(image, timeout=250).__enter__()
    finally:
        extract.__file__ = before
    told = json.loads(str(caught.value).partition(": ")[2])
    print(told)
    assert told["wrong"] == []
    assert count // 10 < told["refused"] < count  # others mean something harmless
    assert told["worst"] < MOST * max(FLOOR, honest_cost[1 << 16])


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_nothing_but_errors_of_ours_leaves(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["aci", "layout", "tar", "docker"]))
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        top = Path(name)
        layer = specimen()
        if kind == "aci":
            image = aci(top / "x.aci", specimen("rootfs/"), end=b"")
        elif kind == "docker":
            image = docker(top / "x.tar", layer, User="me", Env=["A=b"], Cmd=["x"])
        else:
            layout = Layout(layer, User="me", Env=["A=b"], Cmd=["x"])
            image = layout.tar(top / "x.tar") if kind == "tar" else layout.directory(top / "x")
        paths = [path for path in (top.rglob("*")) if path.is_file()]
        path = data.draw(st.sampled_from(sorted(paths)))
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
            content = content or bytearray(b"x")
        path.write_bytes(content)
        try:
            with load.open_image(image) as (_, process):
                assert isinstance(process, load.Process)
        except SandboxError:
            pass


@pytest.mark.parametrize(
    "words",
    [
        {"path": 5},
        {"path": "a\0b"},
        {"path": ""},
        {"path": "\ud800"},
        {"path": "x", "ref": 5},
        {"path": "x", "ref": "a\0b"},
        {"path": "x", "into": ""},
        {"path": "x", "into": 7},
        {"path": "x", "into": "n" * 5000},
        {"path": "x", "keep_set_ids": 1},
        {"path": "x", "max_size": "1"},
        {"path": "x" * 5000},
        {"path": "/dev/null"},
        {"path": "/proc/self/mem"},
        {"path": "/proc/self/fd"},
        {"path": "/etc/passwd/x"},
    ],
)
def test_arguments_that_make_no_sense(words: dict[str, Any]) -> None:
    with pytest.raises(SandboxError):
        oci.unpack_oci_image(**words).__enter__()
    if words.keys() == {"path"}:
        with pytest.raises(SandboxError):
            load.open_image(words["path"]).__enter__()
        if not isinstance(words["path"], str) or "\0" in words["path"]:
            with pytest.raises(sandboxlib.SpecError):
                load.is_image(words["path"])
