# SPDX-License-Identifier: Apache-2.0
"""The configuration of the worker: a file, flags over it, and errors that name the key."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxlib import SpecError
from sandboxlib._worker.config import KEYS, TABLES, address, print_config, read_config

URL = "grpc://localhost:50051"
TOP = Path(__file__).resolve().parents[2]


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "worker.toml"
    path.write_text(text)
    return str(path)


def test_a_flag_is_stronger_than_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, f'server = "{URL}"\nslots = 3\nheartbeat = 2.5\n')
    config = read_config(path, {"slots": "7", "heartbeat": None})
    assert (config.slots, config.heartbeat, config.server) == (7, 2.5, URL)


def test_the_tables_of_the_file_and_of_the_flags_are_one(tmp_path: Path) -> None:
    path = written(
        tmp_path, f'server = "{URL}"\n[sandbox]\nroot = "/srv"\n[properties]\npool = ["a", "b"]\n'
    )
    flags = {"sandbox": ["umask=0o22", "user=root"], "properties": ['pool="c"', "is=a=b"]}
    config = read_config(path, flags)
    assert config.sandbox == {"root": "/srv", "umask": 0o22, "user": "root"}
    assert config.properties == {"pool": "c", "is": "a=b"}


def test_what_is_printed_is_read_back(tmp_path: Path) -> None:
    flags = {"server": URL, "name": 'ü "x" \\ y', "cache": str(tmp_path), "timeout": "1.5"}
    tables = {"sandbox": ['writable=["/a", "b\\u007f"]', "limits={pids = 5}"]}
    config = read_config(None, {**flags, **tables})
    text = print_config(config)
    again = read_config(written(tmp_path, text), {})
    assert again == config
    assert "cache_size = 10737418240\n" in text


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["server", "--server"]),
        ("server = 5", ["server", "not a str"]),
        ('server = "http://x"', ["server", "grpc://"]),
        ("slots = 0", ["slots", "from 1"]),
        ("slots = true", ["slots"]),
        ('heartbeat = "soon"', ["heartbeat", "seconds"]),
        ("poll = 1", ["poll", "at least 4"]),
        ("cache_size = 10", ["cache_size"]),
        ('cache_size = "10 lots"', ["cache_size", "no size"]),
        ("slot = 1", ["slot", "did you mean slots"]),
        ("sandbox = 1", ["sandbox", "[sandbox]"]),
        ('log_format = "xml"', ["log_format", "json"]),
        ('cert = "/a"', ["cert", "without key"]),
        ('metrics = "host"', ["metrics", "HOST:PORT"]),
        ('name = "a/b"', ["name", "'/'"]),
        ("timeout = 9\nmax_timeout = 8", ["timeout", "max_timeout"]),
        ("server = ", ["worker.toml", "TOML"]),
    ],
)
def test_an_error_names_the_key(tmp_path: Path, text: str, names: list[str]) -> None:
    if "server" not in text and text:
        text = f'server = "{URL}"\n{text}'
    with pytest.raises(SpecError) as caught:
        read_config(written(tmp_path, text), {})
    assert all(name in str(caught.value) for name in names), str(caught.value)


def test_an_error_of_a_flag_names_the_flag() -> None:
    with pytest.raises(SpecError, match=r"--drain-timeout is no number of seconds: 'x'"):
        read_config(None, {"server": URL, "drain_timeout": "x"})
    with pytest.raises(SpecError, match="--property 'x' is not of the form NAME=VALUE"):
        read_config(None, {"server": URL, "properties": ["x"]})
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        read_config("/nonexistent/worker.toml", {})


def test_a_port_alone_is_one_of_the_loopback_address() -> None:
    for text, meant in (
        ("0", ("127.0.0.1", 0)),
        (":80", ("127.0.0.1", 80)),
        ("[::1]:5", ("::1", 5)),
    ):
        config = read_config(None, {"server": URL, "metrics": text})
        assert address(config.metrics) == meant
    assert address(read_config(None, {"server": URL}).metrics) is None


def test_each_key_is_in_the_table_of_the_page() -> None:
    page = (TOP / "docs/worker.md").read_text()
    rows = re.findall(r"^\| `(\w+)` +\|", page, re.MULTILINE)
    assert [*rows] == [key.name for key in KEYS]
    assert all(f"[{name}]" in page for name in TABLES)


def worker(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "sandboxlib._worker.main", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_the_program_prints_the_configuration_and_names_a_wrong_key() -> None:
    done = worker("--server", URL, "--slots", "2", "--print-config")
    assert done.returncode == 0
    assert "slots = 2\n" in done.stdout
    assert f'server = "{URL}"\ncas = "{URL}"\n' in done.stdout
    done = worker("--print-config")
    assert done.returncode == 2
    assert done.stderr.startswith("sandboxlib-worker: there is no --server")
    assert worker("--help").returncode == 0


def test_a_root_and_the_cache_do_not_lie_in_each_other(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "cache" / "store").mkdir(parents=True)
    for name in (".", "cache", "cache/store", "none", "file"):
        root = tmp_path / name
        flags = ("--cache", str(tmp_path / "cache"), "--sandbox", f'root="{root}"')
        done = worker("--server", URL, *flags)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("sandboxlib-worker: [sandbox] root: "), done.stderr
        assert str(root) in done.stderr
