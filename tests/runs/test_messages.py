# SPDX-License-Identifier: Apache-2.0
"""A message names what was wrong, where, and the likely remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lib.boxes import open_box
from lib.machine import needs_root

import sandboxlib
from sandboxlib import Policy, SetupError, SpecError, user_namespace

NO_EXEC = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["execve"], "action": "SCMP_ACT_ERRNO"}],
}


def _read(name: str) -> Callable[[Path], object]:
    return lambda directory: Policy(seccomp=directory / name)


WRONG: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "one capability": (lambda _: Policy(capabilities="net_raw"), ("a list", "['net_raw']")),
    "one device": (lambda _: open_box("/", devices="/dev/kvm"), ("a list", "['/dev/kvm']")),
    "a profile's name": (lambda _: Policy(seccomp="a.json"), ("pathlib.Path('a.json')",)),
    "a missing profile": (_read("none"), ("/none", "ENOENT", "step seccomp", "outside")),
    "a broken profile": (_read("broken"), ("/broken is no JSON",)),
    "what moved": (
        lambda _: open_box("/", capabilities="all"),  # type: ignore[arg-type]
        ("Sandbox(policy=Policy(capabilities=...))",),
    ),
    "what is not there": (
        lambda _: sandboxlib.run_sandbox("/", ["true"], secomp="none"),  # type: ignore[call-overload]
        ("no keyword argument secomp",),
    ),
    "two policies": (
        lambda _: sandboxlib.run_sandbox("/", ["true"], nesting=True, policy=Policy()),
        ("nesting", "in the Policy"),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_it_names_the_remedy(tmp_path: Path, case: str) -> None:
    (tmp_path / "broken").write_text("{")
    call, words = WRONG[case]
    with pytest.raises((SpecError, SetupError)) as caught:
        call(tmp_path)
    for word in words:
        assert word in str(caught.value)


def test_a_profile_that_refuses_the_exec_is_named() -> None:
    box = open_box("/", policy=Policy(seccomp=NO_EXEC))
    with pytest.raises(SetupError, match=r"step exec.*; the seccomp profile") as caught:
        box.run(["true"], fresh=True)
    assert caught.value.step == "exec"


@needs_root
def test_nesting_with_ids_in_a_user_namespace_of_roots_names_the_executor() -> None:
    with pytest.raises(sandboxlib.UnsupportedError, match="the executor is chroot"):
        user_namespace.run_sandbox("/", ["true"], nesting=True, user=1000)


@needs_root
def test_a_sandbox_inside_one_is_told_of_nesting() -> None:
    package = str(Path(sandboxlib.__file__).parents[1])
    script = "import sandboxlib; sandboxlib.run_sandbox('/', ['true'])"
    argv = [sys.executable, "-c", script]
    exit, _, err = open_box("/").run(argv, extra_env={"PYTHONPATH": package})
    assert exit != 0
    assert b"Policy(nesting=True)" in (err or b"")


def run(*words: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "sandboxlib", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_the_doctor_tells_which_filter_there_is() -> None:
    text = run("doctor").stdout
    possible = sandboxlib.maximum_possible_isolation()
    assert "cannot isolate seccomp" not in text
    if possible["seccomp"] == "builds":
        assert "    filter of system calls: that of sandboxlib ('builds')" in text


@needs_root
def test_the_command_line_takes_ids_of_the_command(tmp_path: Path) -> None:
    done = run("run", "--user", "1000:100", "/", "sh", "-c", "id -u; id -g")
    assert (done.stdout, done.returncode) == ("1000\n100\n", 0)
    done = run("run", "--user", "1000", "--nesting", "/", "unshare", "-Ur", "id", "-u")
    assert (done.stdout, done.returncode) == ("0\n", 0)
    profile = tmp_path / "profile"
    profile.write_text(json.dumps(NO_EXEC))
    done = run("run", "--seccomp", profile, "/", "true")
    assert done.returncode == 126
    assert "the seccomp profile" in done.stderr


@pytest.mark.parametrize("text", ["", "1:2:3", "-1", "bob", "1:"])
def test_the_command_line_refuses_other_users(text: str) -> None:
    done = run("run", f"--user={text}", "/", "true")
    assert done.returncode == 125
    assert "is none of caller, root, ranges, UID[:GID]" in done.stderr


def test_ids_and_a_user_that_is_a_number_are_told_what_they_need() -> None:
    with pytest.raises(SpecError, match=r"user= with a uid needs processes='isolated'"):
        open_box("/", user=1000, processes="undefined")


def test_a_directory_that_is_there_is_told_how_to_name_another(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "image").write_bytes(bytes(1024))
    unpack = sandboxlib.load.oci.unpack_oci_image
    with (
        pytest.raises(FileExistsError, match="not there yet"),
        unpack(tmp_path / "image", into=tmp_path / "there"),
    ):
        pass


def test_words_that_a_map_takes_for_commands_are_told_so() -> None:
    with pytest.raises(SetupError, match=r"each item of a map is a command"):
        list(open_box("/").map(["true", "no-such-program"], cwd="/"))
