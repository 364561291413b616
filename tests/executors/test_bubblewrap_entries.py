# SPDX-License-Identifier: Apache-2.0
"""Mount.directory, symlink and file by bwrap."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from sandboxlib import (
    File,
    Mount,
    Overlay,
    Result,
    Sandbox,
    SetupError,
    UnsupportedError,
    bubblewrap,
    linux_user_chroot,
)

pytest_plugins = ["lib.bwraps"]
pytestmark = pytest.mark.usefixtures("host_mounts_unchanged")


def sh(root: Any, script: str, mounts: list[Mount], **options: Any) -> Result:
    with Sandbox(root, extra_mounts=mounts, **options) as box:
        return bubblewrap.run_in(box, ["/bin/sh", "-c", script])


def test_entries_go_into_file_systems_of_the_run(rootfs: Path, bwrap: str) -> None:
    mounts = [
        Mount.directory("/tmp/a/b", mode=0o1770),
        Mount.symlink("a/b", "/tmp/link"),
        Mount.directory("/tmp/link/c"),
        Mount.file(b"text\n", "/tmp/link/file", mode=0o640),
        Mount.directory("/etc"),
    ]
    script = (
        "cat /tmp/a/b/file; stat -c %a /tmp/a/b /tmp/a /tmp/a/b/c /tmp/a/b/file; touch /tmp/a/b/x"
    )
    result = sh(rootfs, script, mounts)
    assert (result.exit, result.out) == (0, b"text\n1770\n755\n755\n640\n"), result.err


def test_a_file_hides_the_roots_and_is_read_only(rootfs: Path, bwrap: str) -> None:
    (rootfs / "etc" / "conf").write_text("of the root\n")
    script = "cat /etc/conf; (: > /etc/conf) 2>/dev/null || rm -f /etc/conf || stat -c %a /etc/conf"
    mounts = [Mount.file(File(b"of the run\n", executable=True), "/etc/conf")]
    result = sh(rootfs, script, mounts, filesystem_writable_paths="all")
    assert result.out == b"of the run\n555\n"
    assert (rootfs / "etc" / "conf").read_text() == "of the root\n"


def test_an_empty_root_is_furnished_by_entries(rootfs: Path, bwrap: str) -> None:
    mounts = [
        Mount.bind(rootfs / "bin", "/usr/bin", read_only=True),
        Mount.symlink("usr/bin", "/bin"),
        *(Mount.directory(f"/{name}") for name in ("proc", "dev", "tmp")),
        Mount.file(b"here\n", "/etc/conf"),
    ]
    script = "cat /etc/conf; : > /dev/null; touch /tmp/x /x; ls -d /proc/self/exe; ls"
    result = sh(Overlay(), script, mounts)
    names = b"bin dev etc proc tmp usr x".split()
    assert result.out is not None
    assert result.out.split() == [b"here", b"/proc/self/exe", *names], result.err


def test_what_the_host_would_get_is_refused(rootfs: Path, bwrap: str) -> None:
    for mount in (Mount.directory("/new"), Mount.file(b"", "/new"), Mount.symlink("x", "/new")):
        with pytest.raises(UnsupportedError, match="a directory of the caller's"):
            sh(rootfs, "true", [mount])
    with pytest.raises(SetupError, match="something else") as caught:
        sh(rootfs, "true", [Mount.symlink("x", "/etc")])
    assert caught.value.errno == errno.EEXIST
    assert not (rootfs / "new").exists()


def test_linux_user_chroot_refuses_entries(rootfs: Path) -> None:
    reason = linux_user_chroot.why_not()
    with pytest.raises(UnsupportedError, match=reason[:20] if reason else "Mount.directory"):
        linux_user_chroot.run_in(Sandbox(rootfs, extra_mounts=[Mount.directory("/new")]), ["true"])
