# SPDX-License-Identifier: Apache-2.0
"""Measures a step's filesystem: roots of layers, changes, inputs, images and traces.

Each column is a group of rows that take turns in random order, run by run.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import rows

from sandboxlib import Command, File, Image, Mount, Overlay, Sandbox, SandboxError, Store, Tree

ROOTS, PRISTINE, CHANGES, INPUTS, IMAGES, TRACES = (
    *("full, one run", "a root of 500 MB in 20,000 files", "changes of 1,000 files of 20,000"),
    *("declared inputs", "an image of 20,000 files", "a gcc step"),
)
PLAIN, OVERLAY = "plain root, Sandbox.run", "Overlay, Sandbox.run"
PLAIN_FRESH, OVERLAY_FRESH = "plain root, run_sandbox", "Overlay, run_sandbox"
BWRAP = "bubblewrap --tmp-overlay"
PREPARED, COPY, LINKS = "Overlay, Sandbox.run", "cp -a --reflink=auto", "cp -al"
LISTED, DIGESTED, SAVED = "Changes: listed", "Changes: digest()", "Changes: save()"
TARFILE, TAR = "tarfile, these 1,000 files alone", "GNU tar, these 1,000 files alone"
NO_INPUTS = "no input"
STAGED = {n: f"{n:,} inputs, staged" for n in (1, 100, 10_000)}
SECOND, UNPACK, UMOCI, UNTAR = (
    *("second start, to the end of the run", "unpack, Image"),
    *("unpack, umoci", "tar -x of the layer"),
)
UNTRACED, OPENS, ALL = "fresh run", "trace, opens and execs", "trace, every path call"

_FILES, _SIZE, _CHANGED = 20_000, 25_000, 1_000
_IMAGE_SIZE = 4_000  # bytes of a file of the image, half of which gzip leaves
#: Appends to the first files of the root: a static shell does, which opens each file once.
_TOUCH = "i=0; while [ $i -lt %d ]; do echo x >> /data/$((i / 100))/$i; i=$((i + 1)); done"


class Column:
    """Rows by their names. missing: why this machine cannot run some. once: how many runs of each
    row a round takes the median of.
    """

    def __init__(self, once: int) -> None:
        self.once = once
        self.rows: dict[str, Callable[[], object]] = {}
        self.missing: dict[str, str] = {}

    def add(self, name: str, row: Callable[[], object]) -> None:
        """Adds a row, if it works. It is run once, which also prepares it."""
        try:
            row()
        except (SandboxError, peers.MissingError, OSError, subprocess.CalledProcessError) as error:
            self.missing[name] = str(error)
        else:
            self.rows[name] = row

    def round(self) -> dict[str, float]:
        """The median microseconds of each row."""
        samples: dict[str, list[float]] = {name: [] for name in self.rows}
        for _ in range(self.once):
            for name in random.sample(list(self.rows), len(self.rows)):
                start = time.perf_counter()
                spent = self.rows[name]()  # a row that measures a part of what it does returns it
                total = time.perf_counter() - start
                samples[name].append(spent if isinstance(spent, float) else total)
        return {name: round(statistics.median(v) * 1e6, 1) for name, v in samples.items()}


def columns(directory: Path) -> Iterator[tuple[str, Column]]:
    """The columns, each made when it is its turn: some take a lot of room."""
    yield ROOTS, of_roots(directory)
    with big_root(directory, _SIZE) as root:
        yield PRISTINE, of_pristine(directory, root)
        yield CHANGES, of_changes(directory, root)
    with big_root(directory, _IMAGE_SIZE) as root:
        yield IMAGES, of_images(directory, root)
    yield INPUTS, of_inputs(directory)
    yield TRACES, of_traces(directory)


def must(box: Sandbox, argv: list[str] | Command, **options: Any) -> Any:
    result = box.run(argv, **options)
    if not result.ok:
        raise RuntimeError(f"{argv}: {result}")
    return result


def repeated(box: Sandbox, argv: list[str] | Command, **options: Any) -> Callable[[], object]:
    return lambda: must(box, argv, **options)


# ---- roots -----------------------------------------------------------------------------------


def of_roots(directory: Path) -> Column:
    """A run of /say in a plain root and in an Overlay, prepared and one-shot."""
    column, root = Column(20), directory / "root"
    for name, place, fresh in (
        *((PLAIN, root, False), (PLAIN_FRESH, root, True)),
        *((OVERLAY, Overlay(root), False), (OVERLAY_FRESH, Overlay(root), True)),
    ):
        column.add(name, repeated(Sandbox(place, **rows.FULL), ["/say"], fresh=fresh))
    argv = bwrap(root)
    column.add(BWRAP, lambda: subprocess.run(argv, check=True, capture_output=True))
    return column


def bwrap(root: Path) -> list[str]:
    """The argv of a bubblewrap that has overlays, with the isolation of the other rows."""
    argv = peers.bwrap(root, [], full=True)
    at = argv.index("--bind")
    argv[at : at + 3] = ["--overlay-src", str(root), "--tmp-overlay", "/"]
    try:
        argv[0] = peers.newer_bwrap()
    except peers.MissingError as error:
        return ["/bin/sh", "-c", f"echo {str(error)!r} >&2; exit 1"]
    return argv


def rates(directory: Path, seconds: float) -> dict[str, float]:
    """Runs per second, one after the other, in a plain root and in an Overlay, both prepared."""
    root = directory / "root"
    boxes = {PLAIN: Sandbox(root, **rows.FULL), OVERLAY: Sandbox(Overlay(root), **rows.FULL)}
    found = {}
    for name in random.sample(list(boxes), len(boxes)):
        must(boxes[name], ["/say"])
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            must(boxes[name], ["/say"])
            count += 1
        found[name] = round(count / (time.perf_counter() - start), 1)
        boxes[name].close()
    return {name: found[name] for name in boxes}


# ---- a large root ----------------------------------------------------------------------------


@contextlib.contextmanager
def big_root(directory: Path, size: int) -> Iterator[Path]:
    """A root with a static shell and 20,000 files of that size, on a disk and not in memory."""
    shell = shutil.which("busybox")
    if shell is None:
        raise peers.MissingError("there is no busybox in PATH (apt: busybox-static)")
    root = directory / "big"
    for name in ("proc", "tmp", "dev", "bin", "data"):
        (root / name).mkdir(parents=True)
    shutil.copy(shell, root / "bin/sh")
    for number in range(_FILES):
        path = root / "data" / str(number // 100) / str(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(random.randbytes(size // 2).hex().encode())
    try:
        yield root
    finally:
        shutil.rmtree(root)


def of_pristine(directory: Path, root: Path) -> Column:
    """A pristine root for one run that writes a file."""
    column, copy = Column(1), directory / "copy"
    box = Sandbox(Overlay(root), **rows.FULL)
    column.add(PREPARED, lambda: must(box, ["/bin/sh", "-c", "echo x > /data/new"]))
    for name, how in ((COPY, ["-a", "--reflink=auto"]), (LINKS, ["-al"])):

        def row(how: list[str] = how) -> float:
            start = time.perf_counter()
            subprocess.run(["cp", *how, str(root), str(copy)], check=True)
            spent = time.perf_counter() - start
            shutil.rmtree(copy)
            return spent

        column.add(name, row)
    return column


def of_changes(directory: Path, root: Path) -> Column:
    """What a run changed, in several forms, each from the run's own Changes."""
    column = Column(3)
    box = Sandbox(Overlay(root), **rows.FULL)
    command = Command(["/bin/sh", "-c", _TOUCH % _CHANGED], changes="keep")

    def measured(work: Callable[[Any], object]) -> Callable[[], float]:
        def row() -> float:
            with must(box, command).changes as changes:
                start = time.perf_counter()
                work(changes)
                return time.perf_counter() - start

        return row

    target = directory / "saved.tar"
    column.add(LISTED, measured(list))
    column.add(DIGESTED, measured(lambda changes: changes.digest(mtime=0)))
    column.add(SAVED, measured(lambda changes: changes.save(target, mtime=0)))
    paths = [f"data/{number // 100}/{number}" for number in range(_CHANGED)]

    def in_python() -> None:
        with tarfile.open(target, "w") as tar:
            for path in paths:
                tar.add(root / path, path)

    names = "".join(f"{path}\n" for path in paths).encode()
    argv = ["tar", "-C", str(root), "-T", "-", "-cf", str(target)]
    column.add(TARFILE, in_python)
    column.add(TAR, lambda: subprocess.run(argv, input=names, check=True))
    return column


# ---- images ----------------------------------------------------------------------------------


def layout(directory: Path, root: Path) -> Path:
    """An OCI layout of one layer, the root, as umoci takes it, gzipped as usual."""
    import gzip
    from hashlib import sha256

    top = directory / "layout"
    (top / "blobs/sha256").mkdir(parents=True)
    plain = directory / "layer.tar"
    subprocess.run(["tar", "-C", str(root), "--numeric-owner", "-cf", str(plain), "."], check=True)

    def put(data: bytes, kind: str) -> dict[str, object]:
        name = sha256(data).hexdigest()
        (top / "blobs/sha256" / name).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{name}", "size": len(data)}

    prefix = "application/vnd.oci.image."
    content = plain.read_bytes()
    layer = put(gzip.compress(content, 1), prefix + "layer.v1.tar+gzip")
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{sha256(content).hexdigest()}"]}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    described = put(json.dumps(config).encode(), prefix + "config.v1+json")
    manifest = {"schemaVersion": 2, "config": described, "layers": [layer]}
    entry = put(json.dumps(manifest).encode(), prefix + "manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "t"}
    (top / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (top / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    return top


def of_images(directory: Path, root: Path) -> Column:
    """Unpacking an image, and a run in one that is unpacked."""
    column, top, out = Column(1), layout(directory, root), directory / "out"
    kept = Store(directory / "store")

    def again() -> None:
        with Sandbox(Image(top, "t"), store=kept, **rows.FULL) as box:
            must(box, ["/bin/sh", "-c", "exit 0"], fresh=True)

    def unpack() -> float:
        start = time.perf_counter()
        with Sandbox(Image(top, "t"), store=Store(out), **rows.FULL) as box:
            box.prepare()
            spent = time.perf_counter() - start
        shutil.rmtree(out)
        return spent

    def by(argv: list[str], before: Callable[[], object] = lambda: None) -> Callable[[], float]:
        def row() -> float:
            before()
            start = time.perf_counter()
            subprocess.run(argv, check=True, capture_output=True)
            spent = time.perf_counter() - start
            shutil.rmtree(out)
            return spent

        return row

    column.add(SECOND, again)
    column.add(UNPACK, unpack)
    if shutil.which("umoci"):
        column.add(UMOCI, by(["umoci", "unpack", "--image", f"{top}:t", str(out)]))
    else:
        column.missing[UMOCI] = "there is no umoci in PATH (apt: umoci)"
    untar = ["tar", "-C", str(out), "-xf", str(directory / "layer.tar")]
    column.add(UNTAR, by(untar, out.mkdir))
    return column


# ---- inputs and traces -----------------------------------------------------------------------


def of_inputs(directory: Path) -> Column:
    """A run with so many inputs, in one Tree that is staged already, and one File."""
    column = Column(10)
    box = Sandbox(Overlay(directory / "root"), store=Store(directory / "inputs"), **rows.FULL)
    column.add(NO_INPUTS, lambda: must(box, ["/say"]))
    for count, name in STAGED.items():
        files = {f"{n // 100}/{n}": b"%d" % n for n in range(count)}
        command = Command(["/say"], inputs={"/src": Tree(files), "/a.c": File(b"int a;")})
        column.add(name, repeated(box, command))
    return column


def of_traces(directory: Path) -> Column:
    """A compile step of a program with many headers, untraced and traced."""
    column = Column(3)
    (directory / "src").mkdir()
    headers = ("stdio.h", "stdlib.h", "string.h", "unistd.h", "sys/socket.h", "pthread.h")
    text = io.StringIO()
    text.writelines(f"#include <{name}>\n" for name in headers)
    (directory / "src/a.c").write_text(text.getvalue() + "int main(void) { return 0; }\n")
    if shutil.which("gcc") is None:
        column.missing[UNTRACED] = "there is no gcc in PATH"
        return column
    box = Sandbox("/", extra_mounts=[Mount.bind(directory / "src", "/mnt")])
    command = Command(["gcc", "-O0", "-c", "a.c"], "/mnt")
    column.add(UNTRACED, lambda: must(box, command, fresh=True))
    column.add(OPENS, lambda: box.trace(command).result.check())
    column.add(ALL, lambda: box.trace(command, paths="all").result.check())
    return column


def clean_up(directory: Path) -> None:
    """Removes what columns() left in a directory."""
    for name in ("store", "out", "inputs", "layout", "copy"):
        if os.path.lexists(directory / name):
            shutil.rmtree(directory / name)
