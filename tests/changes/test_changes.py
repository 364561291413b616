# SPDX-License-Identifier: Apache-2.0
"""What a command did in an overlay is told truly, by its list, its archive and its effect."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from changes.conftest import KINDS
from lib.trees import walk
from lib.uppers import changed, told, unpack, without_owners

#: What a command does, and what is told of it.
TOLD: dict[str, tuple[str, list[str]]] = {
    "nothing": ("", []),
    "add": ("open('usr/new', 'w').write('x')", ["added file /usr/new"]),
    "append": ("open('usr/a', 'a').write('x')", ["modified file /usr/a"]),
    "delete": ("os.unlink('usr/lib/y')", ["deleted file /usr/lib/y"]),
    "delete_tree": ("shutil.rmtree('usr/share')", ["deleted directory /usr/share"]),
    "chmod": ("os.chmod('usr/a', 0o600)", ["metadata file /usr/a"]),
    "chmod_directory": ("os.chmod('usr/lib', 0o700)", ["metadata directory /usr/lib"]),
    "chmod_root": ("os.chmod('.', 0o700)", ["metadata directory /"]),
    "touch": ("os.utime('usr/a', (5, 5))", ["metadata file /usr/a"]),
    "touch_directory": ("os.utime('usr/lib', (5, 5))", ["metadata directory /usr/lib"]),
    "touch_link": (
        "os.utime('link-l0', (5, 5), follow_symlinks=False)",
        ["metadata symlink /link-l0"],
    ),
    "xattr": ("os.setxattr('usr/a', 'user.x', b'y')", ["metadata file /usr/a"]),
    "open_to_write": ("open('usr/a', 'r+').close()", []),
    "same_content": (
        "open('same', 'w').write('same of l0')",
        ["metadata file /same"],
    ),
    "same_content_and_time": (
        "open('same', 'w').write('same of l0'); os.utime('same', (1e9, 1e9))",
        [],
    ),
    "same_length": ("open('same', 'w').write('sAme of l0')", ["modified file /same"]),
    "parents": (
        "os.chmod('usr/share/doc/deep/two', 0o600)",
        ["metadata file /usr/share/doc/deep/two"],
    ),
    "replace": (
        "open('usr/n', 'w').write('n'); os.rename('usr/n', 'usr/a')",
        ["modified file /usr/a"],
    ),
    "rename": (
        "os.rename('usr/a', 'usr/c')",
        ["deleted file /usr/a", "added file /usr/c"],
    ),
    "come_and_go": ("open('usr/n', 'w').close(); os.unlink('usr/n')", ["metadata directory /usr"]),
    "file_to_directory": (
        "os.unlink('file'); os.mkdir('file'); open('file/in', 'w').close()",
        ["modified directory /file", "added file /file/in"],
    ),
    "directory_to_file": (
        "shutil.rmtree('dir'); open('dir', 'w').close()",
        ["modified file /dir"],
    ),
    "opaque": (
        "shutil.rmtree('gone'); os.mkdir('gone'); open('gone/n', 'w').close()",
        ["deleted file /gone/c", "deleted directory /gone/d", "added file /gone/n"],
    ),
    "opaque_with_the_same": (
        "shutil.copytree('gone', '../m/x', symlinks=True); shutil.rmtree('gone');"
        "os.rename('x', 'gone')",
        [],
    ),
    "relink": (
        "os.unlink('link-l0'); os.symlink('usr', 'link-l0')",
        ["modified symlink /link-l0"],
    ),
    "special": (
        "import socket; os.mkfifo('fifo'); s = socket.socket(socket.AF_UNIX); s.bind('socket')",
        ["added fifo /fifo", "added socket /socket"],
    ),
    "special_in_place": (
        "os.unlink('file'); os.mkfifo('file')",
        ["modified fifo /file"],
    ),
    "hard_link": ("os.link('usr/a', 'usr/a2')", ["added file /usr/a2"]),
    "hard_links": (
        "open('z', 'w').write('z'); os.link('z', 'b'); os.link('z', 'usr/z')",
        ["added file /b", "added file /usr/z", "added file /z"],
    ),
    "names": (
        r"open(b'bad\xff', 'w').close(); open('new\nline', 'w').close(); os.mkdir('\U0001f600')",
        [r"added file /bad\udcff", r"added file /new\nline", r"added directory /\U0001f600"],
    ),
    "long_names": (
        "os.makedirs('n' * 200 + '/' + 'm' * 200); os.symlink('t' * 300, 'n' * 200 + '/l')",
        [
            f"added directory /{'n' * 200}",
            f"added symlink /{'n' * 200}/l",
            f"added directory /{'n' * 200}/{'m' * 200}",
        ],
    ),
    "closed": (
        "os.mkdir('closed'); open('closed/f', 'w').write('f'); os.chmod('closed/f', 0);"
        "os.chmod('closed', 0); os.chmod('usr/lib', 0)",
        ["added directory /closed", "added file /closed/f", "metadata directory /usr/lib"],
    ),
    "sparse": (
        "f = open('sparse', 'wb'); f.truncate(1 << 40); f.seek(1 << 30); f.write(b'hi'); f.close()",
        ["added file /sparse"],
    ),
    "whiteout_of_nothing": (
        "open('usr/n', 'w').close(); os.rename('usr/n', 'usr/lib/n'); os.unlink('usr/lib/n')",
        ["metadata directory /usr", "metadata directory /usr/lib"],
    ),
}
#: In an overlay of a user namespace the kernel refuses to rename a directory of a layer (EXDEV).
RENAMES: dict[str, tuple[str, list[str]]] = {
    "rename_directory": (
        "os.rename('usr/share', 'etc/sh')",
        [
            *("added directory /etc/sh", "added directory /etc/sh/doc"),
            *("added directory /etc/sh/doc/deep", "added file /etc/sh/doc/deep/two"),
            *("added file /etc/sh/doc/one", "deleted directory /usr/share"),
        ],
    ),
    "rename_and_change": (
        "os.rename('gone', 'went'); os.unlink('went/c'); os.mkdir('gone');"
        "open('gone/c', 'w').write('c'); os.rename('went/d', 'd'); open('d/n', 'w').close()",
        [
            *("added directory /d", "added file /d/e", "added file /d/n"),
            *("modified file /gone/c", "deleted directory /gone/d", "added directory /went"),
        ],
    ),
    "rename_over": (
        "shutil.rmtree('dir'); os.rename('gone', 'dir')",
        [
            *("added file /dir/c", "added directory /dir/d", "added file /dir/d/e"),
            *("deleted directory /dir/in", "deleted directory /gone"),
        ],
    ),
    "rename_back": ("os.rename('gone', 'g'); os.rename('g', 'gone')", []),
}
IMPORTS = "import os, shutil\n"
CASES = [
    *(pytest.param(user, case, id=f"{case}-{'user' if user else 'root'}", marks=marks)
      for user, marks in ((False, KINDS[0].marks), (True, ()))
      for case in {**TOLD, **(RENAMES if not user else {})}),
]  # fmt: skip


@pytest.mark.parametrize(("user", "case"), CASES)
def test_what_a_command_did_is_told_and_makes_the_same_tree(
    tmp_path: Path, base: list[Path], user: bool, case: str
) -> None:
    script, expected = (TOLD | RENAMES)[case]
    changes, seen = changed(tmp_path / "run", base, IMPORTS + script, user=user)
    if user and case == "hard_link":  # a file that was copied up keeps another number of an inode
        seen = {name: (*values[:6], name) for name, values in seen.items()}
        seen["./usr/a2"] = (*seen["./usr/a2"][:6], "./usr/a")
    merged = merge(base, tmp_path / "merged")
    with changes:
        assert sorted(told(changes)) == sorted(expected)
        assert len(changes) == len(expected)
        digest = changes.save(tmp_path / "layer.tar")
        assert digest == changes.digest() == digest_of(tmp_path / "layer.tar")
        if os.geteuid() != 0 and case == "closed":
            return  # the test cannot read what is there
        if os.geteuid() == 0 or case != "chmod_root":
            copy = shutil.copytree(merged, tmp_path / "applied", symlinks=True)
            times_of(merged, copy)
            changes.apply(copy)
            is_same_tree(copy, seen)
    if "socket" not in script:
        unpack(tmp_path / "layer.tar", merged)
        is_same_tree(merged, seen)


def merge(layers: list[Path], to: Path) -> Path:
    """The tree of layers without whiteouts."""
    for layer in layers:
        shutil.copytree(layer, to, symlinks=True, dirs_exist_ok=True)
    for layer in layers:
        times_of(layer, to)
    return to


def times_of(source: Path, to: Path) -> None:
    for path in [*source.rglob("*"), source]:
        time = path.lstat().st_mtime_ns
        os.utime(to / path.relative_to(source), ns=(time, time), follow_symlinks=False)


def is_same_tree(directory: Path, seen: dict[str, tuple[object, ...]]) -> None:
    assert without_owners(walk(directory)) == without_owners(seen)


def digest_of(file: Path) -> str:
    return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
