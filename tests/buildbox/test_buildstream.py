# SPDX-License-Identifier: Apache-2.0
"""BuildStream builds through our runner what it builds through its own. Nothing needs a network."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lib.buildstream import ELEMENTS, Builder, buildbox, make_project, our_runner
from lib.machine import require
from lib.roots import find_busybox

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    busybox = find_busybox()
    require(busybox, "there is no static busybox (apt: busybox-static)")
    assert busybox is not None
    project = tmp_path_factory.mktemp("project") / "p"
    make_project(project, busybox)
    return project


@pytest.fixture
def ours(project: Path, tmp_path: Path) -> Builder:
    return Builder(project, our_runner(tmp_path / "bin"), tmp_path / "ours")


def test_ten_elements_have_the_artifacts_that_the_bundled_runner_makes(
    project: Path, ours: Builder, tmp_path: Path
) -> None:
    names = [f"{name}.bst" for name in ELEMENTS]
    bundled = Builder(project, buildbox(), tmp_path / "bundled")
    for builder in (ours, bundled):
        builder.run("build", *names)
    digests = ours.digests(*names)
    assert len(digests) == len(names) == 10
    assert all(re.match(r"cached .*[0-9a-f]{64}/\d+", digest) for digest in digests.values())
    assert digests == bundled.digests(*names)
    ours.run("artifact", "checkout", "--directory", str(tmp_path / "out"), "script.bst")
    assert "said" in (tmp_path / "out/listing").read_text()
    ours.run("artifact", "checkout", "--directory", str(tmp_path / "made"), "made.bst")
    assert (tmp_path / "made/usr/bin/made").read_text() == "part1\npart2\npart3\n"


def test_a_command_that_fails_is_told_with_its_output(project: Path, ours: Builder) -> None:
    text = "kind: manual\nbuild-depends: [base.bst]\nconfig:\n  install-commands:\n"
    (project / "elements/fails.bst").write_text(f"{text}  - echo the reason; exit 3\n")
    out = ours.run("build", "fails.bst", status=255)
    assert "the reason" in out
    assert "exitcode 3" in out


def alive(mark: str) -> Iterator[str]:
    """The processes whose command line has a word."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if mark.encode() in words:
                yield name


def test_bst_that_is_ended_leaves_no_command(project: Path, ours: Builder) -> None:
    mark = f"7{os.getpid()}7"
    text = "kind: manual\nbuild-depends: [base.bst]\nconfig:\n  install-commands:\n"
    (project / "elements/sleeps.bst").write_text(f"{text}  - sleep {mark}\n")
    process = ours.start("build", "sleeps.bst")
    try:
        deadline = time.monotonic() + 120
        while not list(alive(mark)) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.2)
        assert list(alive(mark))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
        assert not list(alive(mark))
    finally:
        process.kill()
        process.wait()
