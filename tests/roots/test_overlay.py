# SPDX-License-Identifier: Apache-2.0
"""A root of layers: each run has a pristine copy, which it may change as it likes."""

import os
import stat
import threading

import pytest
from lib.roots import make_rootfs

from sandboxlib import (
    Limits,
    Mount,
    Overlay,
    Policy,
    Sandbox,
    SandboxError,
    SetupError,
    SpecError,
    UnsupportedError,
)

pytest_plugins = ["lib.ways"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = make_rootfs(tmp_path_factory.mktemp("layers") / "base")
    (root / "etc" / "name").write_text("base\n")
    (root / "etc" / "gone").write_text("base\n")
    (root / "lib").mkdir()
    (root / "lib" / "one").write_text("1\n")
    return root


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    layer = tmp_path_factory.mktemp("layers") / "top"
    (layer / "etc").mkdir(parents=True)
    (layer / "etc" / "name").write_text("top\n")
    (layer / "lib").mkdir()
    (layer / "lib" / "two").write_text("2\n")
    layer.chmod(0o751)
    return layer


@pytest.fixture(params=["fresh", "slot", "map", "start", "async"])
def run(request, executor):
    """Runs a command in a Sandbox in one of the ways; a map yields its SandboxError."""

    from lib.ways import WAYS  # a plugin, which pytest imports first

    def call(box, command):
        result = WAYS[request.param](box, command)
        if isinstance(result, SandboxError):
            raise result
        return result

    return call


def listing(*roots):
    """All names below some directories, with what changes if somebody writes to one."""
    found = {}
    for root in roots:
        for where, _, files in os.walk(root):
            for path in (where, *(os.path.join(where, name) for name in files)):
                status = os.lstat(path)
                found[path] = (
                    status.st_mode,
                    status.st_size,
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                )
    return found


def sh(line):
    return ["sh", "-c", line]


def test_a_later_layer_hides_the_files_of_an_earlier_one(run, base, top):
    with Sandbox(Overlay(base, top)) as box:
        assert run(box, sh("cat /etc/name; ls /lib")).stdout == b"top\none\ntwo\n"
    with Sandbox(Overlay(top, base)) as box:
        assert run(box, sh("cat /etc/name")).stdout == b"base\n"


def test_each_run_begins_pristine_and_no_layer_is_written_to(run, base, top):
    before = listing(base, top)
    line = "cat /etc/name /etc/gone && echo new > /etc/name && rm /etc/gone /lib/one && ls /lib"
    with Sandbox(Overlay(base, top)) as box:
        for _ in range(3):
            result = run(box, sh(line))
            assert (result.exit, result.stdout) == (0, b"top\nbase\ntwo\n")
    assert listing(base, top) == before


def test_the_root_looks_as_that_of_the_top_layer(run, base, top):
    with Sandbox(Overlay(base, top)) as box:
        told = run(box, ["stat", "-c", "%a %u %Y", "/"]).stdout.split()
    assert told == [b"751", b"%d" % os.getuid(), b"%d" % top.stat().st_mtime]


def test_a_directory_of_a_layer_that_is_removed_and_made_again_is_empty(run, base):
    with Sandbox(Overlay(base)) as box:
        result = run(box, sh("rm -r /lib && mkdir /lib && ls -A /lib"))
        assert (result.exit, result.stdout) == (0, b"")


def test_root_renames_a_directory_of_a_layer(run, executor, base):
    with Sandbox(Overlay(base)) as box:
        result = run(box, sh("mv /lib /lab && cat /lab/one && test ! -e /lib"))
        assert (result.exit, result.stdout) == (0, b"1\n")


def test_a_write_beyond_limits_changes_fails(run, base):
    with Sandbox(Overlay(base), limits=Limits(changes="1M")) as box:
        result = run(box, sh("dd if=/dev/zero of=/big bs=1k count=900 && echo fits"))
        assert result.stdout == b"fits\n"
        result = run(box, sh("dd if=/dev/zero of=/big bs=1k count=2000"))
        assert result.exit == 1
        assert b"No space left" in result.stderr
        result = run(box, sh("for i in $(seq 2000); do : > /lib/$i || exit 7; done"))
        assert result.exit != 0
        assert b"No space left" in result.stderr


def test_a_root_that_is_read_only_has_the_mounts_that_it_lacks_and_holes(run, base, tmp_path):
    (tmp_path / "given").write_text("given\n")
    box = Sandbox(
        Overlay(base),
        filesystem_writable_paths=["/lib"],
        extra_mounts=[Mount.bind(tmp_path, "/mnt/deep/er", read_only=True), Mount.tmpfs("/work")],
    )
    with box:
        line = "cat /mnt/deep/er/given; : > /lib/x && : > /work/x && ls /lib; : > /etc/x"
        result = run(box, sh(line))
    assert result.stdout == b"given\none\nx\n"
    assert result.exit != 0
    assert b"Read-only" in result.stderr


def test_a_device_node_of_a_layer_does_not_work(run, executor, base, tmp_path):
    layer = tmp_path / "devices"
    layer.mkdir()
    if os.geteuid() == 0:
        os.mknod(layer / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    else:
        pytest.skip("only root makes device nodes")
    with Sandbox(Overlay(base, layer)) as box:
        result = run(box, sh("test -c /zero && head -c 1 /zero"))
    assert result.exit != 0
    assert b"Permission denied" in result.stderr


def test_no_process_of_a_run_reaches_a_layer_or_the_upper(run, base, top):
    """Neither by a descriptor, nor by a mount, nor by a name in /proc."""
    line = (
        "cat /proc/self/mountinfo /proc/mounts; ls -l /proc/self/fd /proc/1/fd 2>/dev/null;"
        " ls -d /l /upper /work /empty /.. ; umount / ; umount -l /; ls -a /.."
    )
    with Sandbox(Overlay(base, top)) as box:
        told = run(box, sh(line)).stdout.decode()
    for path in (base, top, base.parent):
        assert str(path) not in told
    points = [line.split()[4] for line in told.splitlines() if " - " in line]
    assert points.count("/") == told.count(" - overlay ") == 1
    assert {point.split("/")[1] for point in points} == {"", "proc", "dev", "tmp"}


def test_layers_must_be_directories_and_the_error_names_the_one_that_is_not(run, base, tmp_path):
    (tmp_path / "file").write_text("")
    missing = tmp_path / "none"
    for path, text in ((missing, "has to be there"), (tmp_path / "file", "it is a file")):
        with pytest.raises(SetupError, match=text) as caught, Sandbox(Overlay(base, path)) as box:
            run(box, ["true"])
        assert (caught.value.step, caught.value.filename) == ("layer", str(path))
        assert f"layer 1, {path}" in str(caught.value)


def test_the_same_directory_twice_is_refused(executor, base):
    with pytest.raises(SetupError, match="the same directory"):
        Sandbox(Overlay(base, base)).run(["true"], fresh=True)


def test_two_threads_see_nothing_of_each_other(executor, base):
    seen = []
    with Sandbox(Overlay(base)) as box:

        def work(name):
            for _ in range(10):
                line = f"echo {name} > /mine; cat /mine; ls /lib; : > /lib/{name}"
                seen.append(box.run(sh(line)).stdout)

        threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(seen) == sorted(10 * [b"t%d\none\n" % n for n in range(4)])


def test_an_upper_that_was_kept_is_what_the_run_wrote(executor, base):
    with Sandbox(Overlay(base)) as box:
        result = box.run(sh("echo kept > /lib/new; rm /lib/one"), changes="keep", fresh=True)
        other = box.run(sh("exit 3"), changes="on-failure", fresh=True)
        fine = box.run(["true"], changes="on-failure", fresh=True)
        late = box.run(sh(": > /x; sleep 60"), changes="keep", timeout=1, fresh=True)
    upper = result.changes._upper
    assert sorted(os.listdir(f"/proc/self/fd/{upper.fd}/lib")) == ["new", "one"]
    assert stat.S_ISCHR(os.lstat(f"/proc/self/fd/{upper.fd}/lib/one").st_mode)
    assert upper.complete
    assert not late.changes.complete
    assert [lower.path for lower in upper.lowers] == [str(base)]
    assert fine._changes is None
    assert other._changes is not None
    with pytest.raises(SpecError, match="on-failure"):
        _ = fine.changes
    for each in (result, other, late):
        each._changes.close()


def test_a_command_of_a_root_that_is_a_directory_has_no_changes(executor, base):
    with pytest.raises(SpecError, match="an Overlay"):
        Sandbox(base).run(["true"], changes="keep")


def test_no_descriptor_is_left(executor, base):
    with Sandbox(Overlay(base)) as box:
        box.run(["true"], fresh=True)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            box.run(["true"], changes="keep", fresh=True)._changes.close()
            box.run(["true"], changes="on-failure", fresh=True)
            with pytest.raises(SetupError):
                box.run(["/none"], changes="keep", fresh=True)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_slot_moves_what_it_keeps_into_the_root_of_each_run(executor, base, tmp_path):
    """Binds, files, /dev, and mounts that lie in others, in their order."""
    (tmp_path / "given").write_text("given\n")
    box = Sandbox(
        Overlay(base),
        extra_mounts=[
            Mount.tmpfs("/work"),
            Mount.bind(tmp_path, "/work/in"),
            Mount.directory("/made", mode=0o750),
            Mount.symlink("/work/in/given", "/made/link"),
            Mount.file(b"content\n", "/made/file"),
        ],
    )
    line = "cat /made/link /made/file; stat -c %a /made; echo x > /dev/null; : > /work/x; ls /work"
    with box:
        for _ in range(3):
            result = box.run(sh(line))
            assert result.stdout == b"given\ncontent\n750\nin\nx\n", result
        assert slots_of(box) >= 1


def slots_of(box):
    """How many slots a Sandbox has open."""
    return sum(slots._shared.slots for plan in box._plans.values() for slots in plan.all_slots)


def test_a_run_in_a_slot_hands_over_its_upper(executor, base):
    with Sandbox(Overlay(base)) as box:
        box.run(["true"])
        results = [box.run(sh(f"echo {n} > /n"), changes="keep") for n in range(3)]
        assert slots_of(box) >= 1
        for number, result in enumerate(results):
            upper = result.changes._upper
            with open(f"/proc/self/fd/{upper.fd}/n") as file:
                assert file.read() == f"{number}\n"
            result.changes.close()


def test_nothing_carries_over_in_a_slot(executor, base):
    """Neither files, nor times, nor the mode of the root, nor what lies in /dev/shm and /tmp."""
    look = "stat -c '%a %Y %Z' / /lib /etc | cut -d' ' -f1,2; ls -a / /lib /tmp /dev/shm /dev/pts"
    spoil = (
        "chmod 700 / /lib; touch -d 2001-01-01 /etc /lib; touch /x /lib/x /tmp/x /dev/shm/x;"
        " rm -rf /etc; mkfifo /fifo"
    )
    with Sandbox(Overlay(base)) as box:
        before = box.run(sh(look)).stdout
        for _ in range(3):
            assert box.run(sh(spoil)).ok
            assert box.run(sh(look)).stdout == before
        assert slots_of(box) >= 1


def test_a_process_that_a_run_leaves_keeps_no_later_run_from_a_pristine_root(executor, base):
    with Sandbox(Overlay(base)) as box:
        for _ in range(3):
            line = (
                "(while :; do echo x > /lib/later; done) & exec 3> /lib/held; sleep 0.05; ls /lib"
            )
            assert b"one" in box.run(sh(line)).stdout
            assert box.run(["ls", "/lib"]).stdout == b"one\n"


def test_a_changed_layer_directory_gets_new_slots(executor, base, tmp_path):
    layer = tmp_path / "layer"
    layer.mkdir()
    (layer / "first").touch()
    with Sandbox(Overlay(base, layer)) as box:
        assert box.run(["ls", "/first"]).ok
        layer.rename(tmp_path / "old")
        layer.mkdir()
        (layer / "second").touch()
        assert box.run(["ls", "/second"]).ok
        assert not box.run(["ls", "/first"]).ok


def test_a_command_with_capabilities_cannot_undo_its_root(executor, base):
    """Root with sys_admin unmounts, moves and pivots: it finds no layer, and no other run does."""
    policy = Policy(capabilities=["sys_admin", "sys_chroot", "dac_override"], seccomp="none")
    line = (
        "mkdir /a /a/old; mount -o bind / /a; mount -t tmpfs none /b; umount -l /proc;"
        " umount -l /; cd /a && pivot_root . old; ls -a / /old /..; ls /l /k /upper"
    )
    with Sandbox(Overlay(base), policy=policy) as box:
        for _ in range(2):
            told = box.run(sh(line)).stdout.split()
            assert not {b"work", b"upper", b"empty", b"l", b"k"} & set(told)
            assert box.run(["ls", "/lib"]).stdout == b"one\n"


def test_a_user_of_its_own_runs_in_layers(run, executor, base):
    if os.geteuid() != 0 or executor != "chroot":
        pytest.skip("only root gives a command other ids")
    with Sandbox(Overlay(base), user=1234) as box:
        result = run(box, sh("id -u; touch /tmp/x /x; echo $?"))
    assert result.stdout == b"1234\n1\n"


def test_prepare_opens_a_slot_and_finds_the_layers(executor, base):
    with Sandbox(Overlay(base)) as box:
        box.prepare()
        assert slots_of(box) == 1
        box.prepare(timeout=None)
        with pytest.raises(SpecError):
            box.prepare(timeout=-1)
        assert box.run(["true"]).ok


def test_an_old_kernel_has_no_upper_in_memory_in_a_user_namespace(base, monkeypatch):
    from sandboxlib import user_namespace
    from sandboxlib._host import machine

    monkeypatch.setattr(machine, "kernel_is_older_than", lambda *version: version <= (6, 6))
    (reason,) = user_namespace.refusals(Sandbox(Overlay(base)))
    assert "Linux 5.11" in reason
    monkeypatch.setattr(machine, "kernel_is_older_than", lambda *version: version == (6, 6))
    (reason,) = user_namespace.refusals(Sandbox(Overlay(base)))
    assert "storage='disk'" in reason
    with pytest.raises(UnsupportedError, match="storage='disk'"):
        user_namespace.run_in(Sandbox(Overlay(base)), ["true"])


def test_layers_are_stacked_by_their_names_where_the_kernel_takes_no_descriptors(
    executor, base, top, monkeypatch, tmp_path
):
    """As before Linux 6.15: the same runs, all of them fresh."""
    from sandboxlib._host import machine

    monkeypatch.setattr(machine, "kernel_is_older_than", lambda *version: version == (6, 15))
    bind = Mount.bind(tmp_path, "/mnt/new")
    (tmp_path / "given").touch()
    for options in ({}, {"storage": tmp_path}, {"upper": tmp_path / "kept"}):
        box = Sandbox(Overlay(base, top, **options), extra_mounts=[bind])
        line = "cat /etc/name; ls /lib /mnt/new/given; ls /l /upper /root; rm /etc/name; ls -a /.."
        result = box.run(sh(line), changes="keep")
        assert result.stdout.startswith(b"top\n/mnt/new/given\n\n/lib:\none\ntwo\n"), result
        assert {b"upper", b"work", b"l", b"disk"}.isdisjoint(result.stdout.split())
        assert [change.path for change in result.changes if change.kind == "deleted"]
        result.changes.close()
        assert slots_of(box) == 0
    told = Sandbox(Overlay()).run  # an empty root has no program to run
    with pytest.raises(SetupError, match="exec"):
        told(["/true"])
