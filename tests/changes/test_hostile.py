# SPDX-License-Identifier: Apache-2.0
"""What a hostile command leaves hurts nobody who reads it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from changes.conftest import KINDS
from lib.machine import needs_root
from lib.trees import walk
from lib.uppers import changed, told

from sandboxlib import SetupError, SpecError, UnsupportedError
from sandboxlib._changes import changes as module
from sandboxlib._changes.stream import Item, Nonsense, Stream, parse

pytestmark = pytest.mark.usefixtures("in_time")


@pytest.fixture
def in_time() -> object:
    """Nothing of this file waits for a FIFO or walks for ever."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("user", KINDS)
def test_marks_that_a_command_made_hide_nothing(
    tmp_path: Path, base: list[Path], user: bool
) -> None:
    script = """
import os
for name in ("user", "trusted"):
    for mark, value in (("opaque", b"y"), ("redirect", b"/gone"), ("whiteout", b"y")):
        try: os.setxattr("usr", f"{name}.overlay.{mark}", value)
        except OSError: pass
open("empty", "w").close(); os.setxattr("empty", "user.overlay.whiteout", b"")
try: os.mknod("white", 0o020000, 0)
except OSError: pass
"""
    changes, seen = changed(tmp_path / "run", base, script, user=user)
    with changes:
        assert told(changes) == ["added file /empty", "metadata directory /usr"]
        assert changes.read("/usr/lib/x") == b"usr/lib/x of l0"
        marks = dict(list(changes)[1].xattrs)
        assert marks["user.overlay.opaque"] == b"y"
        assert ("trusted.overlay.opaque" in marks) is not user
        changes.save(tmp_path / "layer.tar")
    assert b"overlay." not in (tmp_path / "layer.tar").read_bytes()
    assert "./usr/lib/x" in seen


@pytest.mark.parametrize("user", KINDS)
@pytest.mark.parametrize("name", [".wh.usr", ".wh..wh..opq", ".wh.x/in"])
def test_a_name_that_means_a_whiteout_is_told_and_not_saved(
    tmp_path: Path, base: list[Path], user: bool, name: str
) -> None:
    script = f"import os\nos.makedirs(os.path.dirname('./{name}'), exist_ok=True)\n"
    changes, _ = changed(tmp_path / "run", base, f"{script}open('{name}', 'w')", user=user)
    with changes:
        assert f"added file /{name}" in told(changes)
        for call in (changes.digest, lambda: changes.save(tmp_path / "x.tar"), changes.commit):
            with pytest.raises(UnsupportedError, match=r"a layer cannot hold /\.wh\."):
                call()
        assert not (tmp_path / "x.tar").exists()
        changes.extract(tmp_path / "out")
    assert (tmp_path / "out" / name).exists()


def test_an_attribute_that_a_layer_cannot_hold_is_told_and_not_saved(
    tmp_path: Path, base: list[Path]
) -> None:
    script = "import os; os.setxattr('usr', 'user.a=b', b'c')"
    changes, _ = changed(tmp_path / "run", base, script, user=True)
    with changes:
        (change,) = changes
        assert change.xattrs == (("user.a=b", b"c"),)
        with pytest.raises(UnsupportedError, match="'='"):
            changes.digest()


def test_no_fifo_is_opened_and_no_link_followed(tmp_path: Path, base: list[Path]) -> None:
    outside = tmp_path / "outside"
    outside.write_text("secret")
    script = f"""
import os
os.mkfifo("fifo"); os.unlink("file"); os.mkfifo("file")
os.symlink("{outside}", "out"); os.symlink("{tmp_path}", "away"); os.symlink("..", "up")
"""
    changes, _ = changed(tmp_path / "run", base, script, user=True)
    with changes:
        assert len(changes) == 5
        for path in ("/fifo", "/file", "/out"):
            with pytest.raises(SetupError, match="no regular file"):
                changes.read(path)
        for path in ("/away/outside", "/up/up/up/etc/passwd", "/../../etc/passwd"):
            with pytest.raises(FileNotFoundError):
                changes.read(path)
        changes.extract(tmp_path / "extracted")
        changes.digest()
    assert os.readlink(tmp_path / "extracted" / "out") == str(outside)
    assert stat.S_ISFIFO((tmp_path / "extracted" / "fifo").lstat().st_mode)
    assert outside.read_text() == "secret"


@needs_root
def test_a_device_is_told_and_never_opened(tmp_path: Path, base: list[Path]) -> None:
    script = """
import os
os.unlink("file"); os.mknod("file", 0o020666, os.makedev(10, 200))
os.mknod("block", 0o060600, os.makedev(7, 1))
"""
    changes, _ = changed(tmp_path / "run", base, script, user=False)
    with changes:
        assert told(changes) == ["added device /block", "modified device /file"]
        block, char = changes
        assert (block.device, char.device) == ((7, 1), (10, 200))
        with pytest.raises(SetupError, match="no regular file"):
            changes.read("/file")
        with pytest.raises(UnsupportedError, match="no devices"):
            changes.apply(base[0])
        changes.extract(tmp_path / "out")
        changes.save(tmp_path / "layer.tar")
    assert not os.listdir(tmp_path / "out")
    with tarfile.open(tmp_path / "layer.tar") as tar:
        assert [(m.name, m.type, m.devmajor, m.devminor) for m in tar] == [
            *(("block", tarfile.BLKTYPE, 7, 1), ("file", tarfile.CHRTYPE, 10, 200)),
        ]


DEEP = """
import os
for n in range({depth}):
    os.mkdir("d" * 20); os.chdir("d" * 20)
open("end", "w").write("end")
"""


def test_a_tree_deeper_than_a_path_or_the_open_files_is_told(
    tmp_path: Path, base: list[Path]
) -> None:
    depth = 700
    place = tmp_path / "run"
    place.mkdir()
    # The walk of the test itself takes paths, so this is an upper without an overlay.
    program = f"import os, sys; os.chdir(sys.argv[1])\n{DEEP.format(depth=depth)}"
    (place / "u").mkdir()
    subprocess.run([sys.executable, "-c", program, str(place / "u")], check=True)
    script = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
from pathlib import Path
from typing import Any
from lib.uppers import changes_of
place, base = Path(sys.argv[1]), Path(sys.argv[2])
with changes_of(place, [base], user=True) as changes:
    print(len(changes), changes.digest(mtime=0) == changes.save(str(place / "layer"), mtime=0))
    print(len(list(changes)[-1].path), list(changes)[-1].path[-4:])
"""
    argv = [sys.executable, "-c", script, str(place), str(base[0])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(depth + 1), "True", str(21 * depth + 4), "/end"], done.stderr
    with tarfile.open(place / "layer") as tar:
        assert len(tar.getmembers()) == depth + 1


def test_more_names_than_the_reader_takes_are_an_error(
    tmp_path: Path, base: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import os\nfor n in range(100): open(f'usr/{n}', 'w').close()"
    changes, _ = changed(tmp_path / "run", base, script, user=True)
    with changes:
        monkeypatch.setattr(module, "_LIMITS", ("100", str(1 << 20)))
        with pytest.raises(SetupError, match="more than 100 names"):
            len(changes)
        monkeypatch.setattr(module, "_LIMITS", ("1000", "1000"))
        with pytest.raises(SetupError, match="too long"):
            len(changes)
        monkeypatch.undo()
        assert len(changes) == 100


def test_a_long_file_is_not_read_whole(tmp_path: Path, base: list[Path]) -> None:
    script = "import os; f = open('long', 'wb'); f.truncate(1 << 43); f.close()"
    changes, _ = changed(tmp_path / "run", base, script, user=True)
    with changes:
        with pytest.raises(OSError, match="max_size is 67108864"):
            changes.read("/long")
        changes.save(tmp_path / "layer.tar")
        assert (tmp_path / "layer.tar").stat().st_size < 10_000
        with pytest.raises(SpecError):
            changes.read("/long", max_size=-1)
        with pytest.raises(SpecError):
            changes.read("long")
        with pytest.raises(SpecError):
            changes.digest(mtime=-1)


def test_an_extracted_file_has_no_privilege(tmp_path: Path, base: list[Path]) -> None:
    script = "import os; os.chmod('usr/a', 0o6755); os.mkdir('s'); os.chmod('s', 0o2755)"
    changes, _ = changed(tmp_path / "run", base, script, user=True)
    with changes:
        changes.extract(tmp_path / "out")
        changes.extract(tmp_path / "kept", keep_set_ids=True)
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "x").write_text("x")
        with pytest.raises(OSError, match="not empty"):
            changes.extract(tmp_path / "full")
    assert stat.S_IMODE((tmp_path / "out" / "usr" / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "kept" / "usr" / "a").stat().st_mode) == 0o6755
    assert sorted(os.listdir(tmp_path)) == ["full", "kept", "l0", "l1", "out", "run"]


def test_changes_that_do_not_fit_leave_a_directory_as_it_was(
    tmp_path: Path, base: list[Path]
) -> None:
    script = """
import os, shutil
open("file", "w").write("n"); os.unlink("dir/in/it"); os.mkdir("added"); open("added/x", "w")
os.chmod("usr", 0o700); os.chmod("same", 0o600); open("usr/lib/y", "w").write("y")
"""
    changes, _ = changed(tmp_path / "run", base, script, user=True)
    tree = base[0]
    (tree / "usr" / "lib" / "y").unlink()
    before = walk(tree)
    with changes, pytest.raises(FileNotFoundError, match="usr/lib/y"):
        changes.apply(tree)
    after = walk(tree)
    assert {name: values[:3] + values[4:] for name, values in after.items()} == {
        name: values[:3] + values[4:] for name, values in before.items()
    }


RECORD = b"/a\0added\0file\x0033188 1 0 0 7\0\0\0\x000 1\0"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *((b"/a", b"a"), (b"/a", b"/../a"), (b"/a", b"/a/./b"), (b"/a", b"//a"), (b"/a", b"/a/")),
        *((b"added", b"renamed"), (b"file", b"directory"), (b"file", b"door")),
        *((b"33188", b"16877"), (b"33188", b"-1"), (b" 1 0", b" x 0"), (b" 1 0", b" 1  0")),
        *((b"0 1\0", b"0 2\0"), (b"0 1\0", b"1 1\0"), (b"0 1\0", b"0 0\0"), (b"0 1\0", b"0\0")),
        *((b"0 1\0", b"0 1 0 1\0"), (b"0 1\0", b"0 1\0name\0"), (b"0 1\0", b"0 1\0name\0zz\0")),
        *((b"7\0\0\0", b"7\0\0../a\0"), (b"7\0\0\0\0", b"7\0\0\x001\0"), (b"0 1\0", b"0 1")),
    ],
)
def test_a_record_that_no_honest_reader_writes_is_refused(old: bytes, new: bytes) -> None:
    assert parse(RECORD).change.path == "/a"
    assert RECORD.count(old) >= 1
    with pytest.raises(Nonsense):
        parse(RECORD.replace(old, new, 1))


class Nothing:
    def begin(self, item: Item) -> None: ...
    def content(self, data: bytes) -> None: ...
    def end(self, item: Item) -> None: ...


def test_a_stream_that_ends_early_or_late_is_refused() -> None:
    whole = len(RECORD).to_bytes(4, "big") + RECORD + b"x" + bytes(4)
    for size in (1, 3, 1000):
        stream = Stream(Nothing())
        for at in range(0, len(whole), size):
            stream.take(whole[at : at + size])
        stream.close()
        with pytest.raises(Nonsense, match="after the end"):
            stream.take(b"\0")
    for end in range(len(whole)):
        stream = Stream(Nothing())
        stream.take(whole[:end])
        with pytest.raises(Nonsense, match="too early"):
            stream.close()
    with pytest.raises(Nonsense, match="a record of"):
        Stream(Nothing()).take(b"\xff\xff\xff\xff")


@pytest.mark.parametrize("at", range(1, 12))
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(24, "Too many open files")])
def test_no_file_is_lost_if_applying_is_interrupted(
    tmp_path: Path, base: list[Path], monkeypatch: pytest.MonkeyPatch, at: int, error: Any
) -> None:
    script = """
import os
for name in ("file", "same", "usr/a", "usr/b"): open(name, "w").write("new")
os.unlink("dir/in/it")
"""
    changes, _ = changed(tmp_path / "run", base, script, user=True)
    tree, rename, calls = base[0], os.rename, []
    before = {name: values[:3] + values[4:] for name, values in walk(tree).items()}

    def interrupted(*args: Any, **options: Any) -> None:
        rename(*args, **options)
        calls.append(args)
        if len(calls) == at:
            raise error

    with changes:
        list(changes)
        monkeypatch.setattr("sandboxlib._changes.apply.os.rename", interrupted)
        try:
            changes.apply(tree)
        except (KeyboardInterrupt, OSError):
            after = {name: values[:3] + values[4:] for name, values in walk(tree).items()}
            assert after == before
        else:
            assert len(calls) < at
        monkeypatch.undo()


def test_what_cannot_be_taken_back_stays_beside_it(
    tmp_path: Path, base: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "for name in ('file', 'same', 'usr/a'): open(name, 'w').write('new')"
    changes, _ = changed(tmp_path / "run", base, script, user=True)
    rename, calls = os.rename, []

    def fails(*args: Any, **options: Any) -> None:
        calls.append(args)
        if len(calls) in (4, 5):
            raise OSError(24, "Too many open files")
        rename(*args, **options)

    with changes:
        list(changes)
        monkeypatch.setattr("sandboxlib._changes.apply.os.rename", fails)
        with pytest.raises(SetupError, match="files that are missing are in ") as caught:
            changes.apply(base[0])
        monkeypatch.undo()
    (left,) = base[0].glob(".sandboxlib-*")
    assert str(left) in str(caught.value)
    whole = b"".join(path.read_bytes() for path in base[0].rglob("*") if path.is_file())
    for name in ("file", "same", "usr/a"):
        assert f"{name} of l0".encode() in whole
