# SPDX-License-Identifier: Apache-2.0
"""Sandbox.trace tells which paths a command asks for."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, require

from sandboxlib import CommandFailed, Sandbox, SetupError, SpecError, SpecTypeError, Trace

pytest_plugins = ["lib.ways"]


def is_dynamic(program: str | None) -> bool:
    assert program
    return b"ld-" in Path(program).read_bytes()[:65536]


def traced(root: Path, line: str, paths: Any = "opens", **options: Any) -> Trace:
    """The Trace of a line of a shell."""
    (root / "etc/busybox.conf").touch()  # an ordinary user's busybox asks for it
    with open_box(root, **options) as box:
        return box.trace(["/bin/sh", "-c", line], paths=paths, cwd="/")


def test_a_path_that_is_not_there_is_missing(executor: str, rootfs: Path) -> None:
    (rootfs / "etc/there").write_text("")
    trace = traced(rootfs, "cat /etc/there /etc/nowhere /nowhere/deeper; exit 3")
    assert trace.missing == ("/etc/nowhere", "/nowhere/deeper")
    assert "/etc/there" in trace.opened
    assert trace.result.exit == 3
    assert trace.result.executor == executor
    assert not trace.truncated
    assert trace.unknown == 0


def test_what_the_run_makes_itself_is_not_missing(executor: str, rootfs: Path) -> None:
    line = "cat /tmp/x; echo > /tmp/x; cat /tmp/d/y; mkdir /tmp/d; mv /tmp/x /tmp/d/y; cat /tmp/x"
    assert traced(rootfs, line).missing == ()


def test_a_new_file_in_a_directory_that_is_not_there_tells_the_directory(rootfs: Path) -> None:
    assert traced(rootfs, "echo > /out/x.o", user="root").missing == ("/out",)


def test_relative_paths_are_told_from_the_root_of_the_sandbox(executor: str, rootfs: Path) -> None:
    (rootfs / "src/include").mkdir(parents=True)
    (rootfs / "src/include/b.h").write_text("")
    trace = traced(rootfs, "cd /src; cat a.h include/b.h; cd include; cat ./c.h //etc//d.h")
    assert trace.missing == ("/etc/d.h", "/src/a.h", "/src/include/c.h")
    assert "/src/include/b.h" in trace.opened


def test_dots_after_a_link_lead_where_the_kernel_goes(executor: str, rootfs: Path) -> None:
    (rootfs / "usr/lib").mkdir(parents=True)
    (rootfs / "lib").symlink_to("usr/lib")
    (rootfs / "usr/there").write_text("")
    trace = traced(rootfs, "cat /lib/../there /lib/../nowhere /lib/nowhere")
    assert trace.missing == ("/lib/nowhere", "/usr/nowhere")
    assert "/usr/there" in trace.opened


def test_what_stat_asks_for_is_seen_with_all(executor: str, rootfs: Path) -> None:
    line = "[ -e /etc/nowhere ]; readlink /etc/link; rm -f /etc/gone"
    assert traced(rootfs, line).missing == ()
    assert traced(rootfs, line, "all").missing == ("/etc/gone", "/etc/link", "/etc/nowhere")


def test_a_link_that_leads_nowhere_is_there_for_who_does_not_follow_it(rootfs: Path) -> None:
    (rootfs / "etc/link").symlink_to("/etc/nowhere")
    assert traced(rootfs, "readlink /etc/link", "all", user="root").missing == ()
    assert traced(rootfs, "cat /etc/link", "all", user="root").missing == ("/etc/link",)


def test_programs_are_told_and_the_interpreters_of_scripts(executor: str, rootfs: Path) -> None:
    (rootfs / "bin/script").write_text("#!/bin/ash\ncat /etc/nowhere\n")
    (rootfs / "bin/script").chmod(0o755)
    trace = traced(rootfs, "script; nothing-like-that")
    assert {"/bin/sh", "/bin/script", "/bin/ash"} <= set(trace.executed)
    assert trace.missing == ("/etc/nowhere",)


def test_the_dynamic_loader_is_told_with_the_program(executor: str) -> None:
    trace = Sandbox("/").trace(["cat", "/etc/passwd"])
    assert "cat" in [os.path.basename(path) for path in trace.executed]
    assert any("/ld-" in path for path in trace.executed) == is_dynamic(shutil.which("cat"))


def test_an_exec_that_fails_tells_no_program(executor: str) -> None:
    require(shutil.which("env"), "there is no env")
    trace = Sandbox("/").trace(["env", "/etc/passwd"])
    assert trace.result.exit == 126
    names = {os.path.basename(path) for path in trace.executed}
    assert "env" in names
    assert "passwd" not in names
    assert not any(name.startswith("libc.") for name in names)


def test_the_search_for_the_program_itself_is_not_told(executor: str, rootfs: Path) -> None:
    (rootfs / "etc/busybox.conf").touch()
    with open_box(rootfs) as box:
        trace = box.trace(["true"], cwd="/", paths="all")
    assert trace.missing == ()
    assert trace.executed == ("/bin/true",)


def test_files_of_proc_are_left_out(executor: str, rootfs: Path) -> None:
    line = "cat /proc/self/status /proc/nowhere < /etc/passwd; cat /dev/stdin < /tmp"
    (rootfs / "etc/passwd").write_text("")
    trace = traced(rootfs, line, "all")
    assert trace.missing == ()
    assert not any(path.startswith("/proc") for path in trace.opened)


def test_names_that_are_not_utf_8_are_told(executor: str, rootfs: Path) -> None:
    with open_box(rootfs) as box:
        trace = box.trace(["/bin/cat", b"/etc/\xff\n\x1b"], cwd="/")
    assert trace.missing == (os.fsdecode(b"/etc/\xff\n\x1b"),)
    assert "\x1b" not in str(trace)


@needs_root
def test_a_process_in_a_chroot_of_its_own_is_seen_there(rootfs: Path) -> None:
    (rootfs / "new/bin").mkdir(parents=True)
    os.link(rootfs / "bin/busybox", rootfs / "new/bin/cat")
    (rootfs / "new/file").write_text("")
    (rootfs / "new/link").symlink_to("/file")
    trace = traced(rootfs, "cat /file; chroot /new /bin/cat /link /nowhere; cat /after")
    assert trace.missing == ("/after", "/file", "/new/nowhere")
    assert {"/new/bin/cat", "/new/file"} <= {*trace.opened, *trace.executed}


@needs_root
def test_a_root_without_a_mount_namespace_is_looked_up_in(rootfs: Path) -> None:
    (rootfs / "etc/there").write_text("")
    trace = traced(rootfs, "/bin/cat /etc/there; cd /etc; /bin/cat nowhere", mounts="undefined")
    assert trace.missing == ("/etc/nowhere",)
    assert "/etc/there" in trace.opened


def test_it_needs_no_reaper(executor: str, rootfs: Path) -> None:
    trace = traced(rootfs, "cat /etc/nowhere; exit 4", init=False)
    assert trace.missing == ("/etc/nowhere",)
    assert trace.result.exit == 4


def test_a_run_that_its_timeout_ends_is_told(executor: str, rootfs: Path) -> None:
    with open_box(rootfs) as box:
        trace = box.trace(["/bin/sh", "-c", "cat /etc/nowhere; sleep 60"], cwd="/", timeout=0.5)
    assert trace.result.timed_out
    assert trace.missing == ("/etc/nowhere",)


def test_a_mount_and_the_private_tmp_are_looked_up_in(rootfs: Path, tmp_path: Path) -> None:
    from sandboxlib import Mount

    (tmp_path / "a").write_text("")
    (rootfs / "mnt").mkdir()
    box = Sandbox(rootfs, extra_mounts=[Mount.bind(tmp_path, "/mnt")])
    line = "cat /mnt/a /mnt/b /tmp/c; echo > /tmp/d; cat /tmp/d"
    trace = box.trace(["/bin/sh", "-c", line])
    assert trace.missing == ("/mnt/b", "/tmp/c")
    assert {"/mnt/a", "/tmp/d"} <= set(trace.opened)


def test_options_are_those_of_a_command_and_the_result_is_any_run_s(rootfs: Path) -> None:
    box = Sandbox(rootfs)
    trace = box.trace(["/bin/sh", "-c", "echo $A; cat; exit 2"], extra_env={"A": "b"}, stdin=b"c")
    assert trace.result.out == b"b\nc"
    with pytest.raises(CommandFailed):
        trace.result.check()
    with pytest.raises(SpecTypeError):
        box.trace(["/bin/true"], nothing=1)  # type: ignore[call-arg]


def test_what_it_cannot_see_is_refused(rootfs: Path) -> None:
    with pytest.raises(SpecError, match="processes='isolated'"):
        Sandbox(rootfs, processes="undefined").trace(["/bin/true"])
    with pytest.raises(SpecError, match="paths"):
        Sandbox(rootfs).trace(["/bin/true"], paths="some")  # type: ignore[arg-type]


def test_a_program_that_is_not_there_raises_as_a_run_does(executor: str, rootfs: Path) -> None:
    with pytest.raises(SetupError) as info, open_box(rootfs) as box:
        box.trace(["/bin/nothing-like-that"], cwd="/")
    assert info.value.step == "exec"


def test_nothing_is_left_of_a_trace(executor: str, rootfs: Path) -> None:
    traced(rootfs, "true")
    before = os.listdir("/proc/self/fd")
    for paths in ("opens", "all"):
        traced(rootfs, "cat /etc/nowhere", paths)
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert not [each for each in threading.enumerate() if each.name == "sandboxlib-tracer"]


def test_several_threads_trace_at_once(executor: str, rootfs: Path) -> None:
    missing: dict[int, tuple[str, ...]] = {}

    def trace(number: int) -> None:
        missing[number] = traced(rootfs, f"cat /etc/{number}").missing

    threads = [threading.Thread(target=trace, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert missing == {number: (f"/etc/{number}",) for number in range(8)}


def test_it_tells_people_what_it_saw(rootfs: Path) -> None:
    trace = traced(rootfs, "cat /etc/nowhere", user="root")
    assert str(trace) == "asked for, and not found:\n    /etc/nowhere"
    assert "missing=('/etc/nowhere',)" in repr(trace)
    assert str(traced(rootfs, "true", user="root")) == "every path that it asked for was found"


def test_programs_of_i386_are_seen(executor: str, rootfs: Path) -> None:
    import subprocess

    require(shutil.which("cc"), "there is no compiler")
    require(os.uname().machine == "x86_64", "this is no x86_64")
    source = rootfs / "open32.c"
    source.write_text(
        'int main(void) { long r; __asm__ volatile("int $0x80" : "=a"(r)'
        ' : "a"(5L), "b"(path), "c"(0L)); return r == -2 ? 7 : 1; }'.replace(
            "int main", 'static const char path[] = "/etc/nowhere";\nint main'
        )
    )
    command = ["cc", "-static", "-no-pie", "-o", rootfs / "open32", source]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    with open_box(rootfs) as box:
        trace = box.trace(["/open32"], cwd="/")
    require(trace.result.exit == 7, "the kernel has no calls of i386")
    assert trace.missing == ("/etc/nowhere",)


def test_a_directory_that_is_renamed_while_a_process_is_in_it(executor: str, rootfs: Path) -> None:
    line = "mkdir /tmp/a; cd /tmp/a; cat x; mv /tmp/a /tmp/b; cat y"
    assert traced(rootfs, line).missing == ("/tmp/a/x", "/tmp/b/y")
