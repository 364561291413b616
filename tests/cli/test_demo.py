# SPDX-License-Identifier: Apache-2.0
"""The demo, and the source of its C files."""

from __future__ import annotations

import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from lib.machine import needs_root, require

from sandboxlib._cli import demo_source

SOURCES = {
    "main.c": "int answer(void);\nint main(void) { return answer() - 42; }\n",
    "lib/answer.c": '#include "answer.h"\nint answer(void) { return ANSWER; }\n',
    "lib/answer.h": "#define ANSWER 42\n",
}


def demo(*words: object, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "sandboxlib", "demo", *map(str, words)]
    given = {**os.environ, **env}
    return subprocess.run(argv, capture_output=True, text=True, env=given, check=False)


@needs_root
def test_it_builds_ones_own_sources_and_stops_what_wants_out(tmp_path: Path) -> None:
    require(shutil.which("cc"), "there is no C compiler")
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = set(os.listdir("/tmp"))
    done = demo("--source", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "program : exit 0" in done.stdout
    assert "share a root" not in done.stdout
    assert (
        "/src/lib/answer.c changed in its root:\n  added file /build/lib%2Fanswer.o" in done.stdout
    )
    assert "asked for, and not found: /src/lib/answer.h" in done.stdout
    assert done.stdout.count(": stopped") == 5
    assert "NOT STOPPED" not in done.stdout
    assert not [name for name in set(os.listdir("/tmp")) - before if "demo" in name]


@needs_root
def test_a_step_that_fails_fails_the_demo(tmp_path: Path) -> None:
    require(shutil.which("cc"), "there is no C compiler")
    (tmp_path / "bad.c").write_text("this is no C\n")
    done = demo("--source", tmp_path)
    assert done.returncode == 1
    assert "bad.c" in done.stderr


@needs_root
def test_a_compiler_may_say_what_is_not_utf8(tmp_path: Path) -> None:
    require(shutil.which("cc"), "there is no C compiler")
    (tmp_path / "bad.c").write_bytes(b"\xff\xfe bad")
    (tmp_path / "gone.c").symlink_to("nowhere")
    done = demo("--source", tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "sandboxed         1         1" in done.stdout


@needs_root
def test_files_of_like_names_are_different_objects(tmp_path: Path) -> None:
    require(shutil.which("cc"), "there is no C compiler")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.c").write_text("int g(void) { return 0; }")
    (tmp_path / "a-b.c").write_text("int g(void); int main(void) { return g(); }")
    done = demo("--source", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("jobs", ["0", "-1", "many"])
def test_jobs_is_a_number_from_one_on(jobs: str) -> None:
    done = demo("--jobs", jobs)
    assert done.returncode == 125
    assert "--jobs" in done.stderr


@needs_root
def test_with_no_index_it_builds_its_own_core_and_says_so(tmp_path: Path) -> None:
    require(shutil.which("cc"), "there is no C compiler")
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "XDG_CACHE_HOME": str(tmp_path)}
    done = demo(**nowhere)
    assert "own csrc" in done.stderr
    assert done.returncode == 0, done.stdout + done.stderr


class Index(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package index of our own; the archive goes into its directory."""
    page = tmp_path / "simple" / "lupa" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="../../files/{demo_source.FILE}#sha256=x">lupa</a>')
    (tmp_path / "files").mkdir()

    def handler(*words: object) -> Index:
        return Index(*words, directory=str(tmp_path))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.delenv("PIP_CERT", raising=False)
        yield tmp_path / "files" / demo_source.FILE
        server.shutdown()
        thread.join()


def archive(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


GOOD = archive({demo_source.PREFIX + "lua54/lua.c": b"int x;"})


def test_the_archive_comes_from_pips_index_once(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    monkeypatch.setattr(demo_source, "SHA256", hashlib.sha256(GOOD).hexdigest())
    index.write_bytes(GOOD)
    directory = demo_source.fetch()
    assert (directory / "lua54" / "lua.c").read_bytes() == b"int x;"
    index.unlink()
    assert demo_source.fetch() == directory


def test_another_archive_is_refused_and_nothing_is_kept(index: Path, tmp_path: Path) -> None:
    index.write_bytes(GOOD)
    with pytest.raises(demo_source.SourceError, match="sha256"):
        demo_source.fetch()
    assert list((tmp_path / "cache" / "sandboxlib").iterdir()) == []


@pytest.mark.parametrize("url", ["/no/url", "http://[bad/simple", "http://127.0.0.1:port/simple"])
def test_an_index_that_is_no_address_is_an_error_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PIP_CERT", raising=False)
    with pytest.raises(demo_source.SourceError):
        demo_source.fetch()


def test_where_pip_has_no_setting_its_own_default_is_taken(monkeypatch) -> None:
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    require(demo_source._pip("--version"), "this interpreter has no pip")
    assert demo_source.index_url().startswith("http")


@pytest.mark.parametrize("name", ["lua54/../../../x.c", "lua54//x.c", "lua54/./x.c"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "bad.tar.gz").write_bytes(archive({demo_source.PREFIX + name: b"x"}))
    with pytest.raises(demo_source.SourceError):
        demo_source.unpack(tmp_path / "bad.tar.gz", tmp_path / "tree")


def test_links_are_not_made_and_what_is_cut_off_is_refused(tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        link = tarfile.TarInfo(demo_source.PREFIX + "lua54/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    (tmp_path / "link.tar.gz").write_bytes(data.getvalue())
    demo_source.unpack(tmp_path / "link.tar.gz", tmp_path / "one")
    assert list((tmp_path / "one").rglob("*")) == []
    (tmp_path / "cut.tar.gz").write_bytes(GOOD[: len(GOOD) // 2])
    with pytest.raises(demo_source.SourceError):
        demo_source.unpack(tmp_path / "cut.tar.gz", tmp_path / "two")


@needs_root
def test_a_timeline_has_each_step_once(tmp_path: Path) -> None:
    require(shutil.which("cc"), "there is no C compiler")
    source = tmp_path / "source"
    for name, text in SOURCES.items():
        (source / name).parent.mkdir(exist_ok=True, parents=True)
        (source / name).write_text(text)
    done = demo("--source", source, "--timeline", tmp_path / "trace.json", "--jobs", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    bars = [event for event in events if event["ph"] == "X"]
    assert sorted(bar["name"] for bar in bars) == ["answer.o", "main.o", "program"]
    assert {bar["args"]["exit"] for bar in bars} == {0}
    assert "each step in a sandbox: 3/3 (" in done.stderr
