# SPDX-License-Identifier: Apache-2.0
"""Uppers on disk: new ones, which go with their run, and those that stay from run to run."""

import asyncio
import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from lib.machine import python
from lib.roots import make_rootfs
from lib.waiting import wait_until

from sandboxlib import Overlay, Sandbox, SetupError

pytest_plugins = ["lib.ways"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = make_rootfs(tmp_path_factory.mktemp("layers") / "base")
    (root / "lib").mkdir()
    (root / "lib" / "one").write_text("1\n")
    return root


@pytest.fixture(params=["fresh", "map", "start", "async"])
def run(request, executor):
    """Runs a command in a Sandbox in one of the ways; a map yields its SandboxError."""
    from lib.ways import WAYS  # a plugin, which pytest imports first

    return WAYS[request.param]


def sh(line):
    return ["sh", "-c", line]


def upper_of(result):
    return Path(f"/proc/self/fd/{result.changes._upper.fd}")


def test_a_new_upper_on_disk_goes_with_its_run(run, base, tmp_path):
    with Sandbox(Overlay(base, storage=tmp_path)) as box:
        for _ in range(2):
            line = "ls /lib; rm /lib/one; mkdir -p /a/b; chmod 0 /a; grep overlay /proc/mounts"
            result = run(box, sh(line))
            assert result.stdout.startswith(b"one\n")
            assert os.fsencode(tmp_path) not in result.stdout
    assert os.listdir(tmp_path) == []


def test_storage_disk_is_below_tmpdir(executor, base, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with Sandbox(Overlay(base, storage="disk")) as box:
        result = box.run(sh("echo new > /x"), changes="keep")
        assert len(os.listdir(tmp_path)) == 1
        assert (upper_of(result) / "x").read_text() == "new\n"
        result.changes.close()
    assert os.listdir(tmp_path) == []


def test_a_command_that_nests_deep_leaves_nothing_on_disk(executor, base, tmp_path):
    line = "i=0; while [ $i -lt 1100 ]; do mkdir d && cd d || exit 1; i=$((i+1)); done"
    with Sandbox(Overlay(base, storage=tmp_path)) as box:
        assert box.run(sh(f"mkdir /deep; cd /deep; {line}")).ok
    assert os.listdir(tmp_path) == []


def test_a_failed_set_up_leaves_nothing_on_disk(executor, base, tmp_path):
    for overlay in (Overlay(base, storage=tmp_path), Overlay(base, base, storage=tmp_path)):
        with Sandbox(overlay) as box, pytest.raises(SetupError):
            box.run(["/none"])
    assert os.listdir(tmp_path) == []


def test_a_place_that_is_missing_is_named(executor, base, tmp_path):
    with pytest.raises(SetupError, match="give another as storage") as caught:
        Sandbox(Overlay(base, storage=tmp_path / "none")).run(["true"])
    assert (caught.value.step, caught.value.errno) == ("upper", errno.ENOENT)


HOST = """
import sys
from pathlib import Path
from sandboxlib import Overlay, Sandbox
box = Sandbox(Overlay(sys.argv[1], storage=Path(sys.argv[2])))
box.run(["sh", "-c", "echo; sleep 60"], stdout=1)
"""


def test_the_next_process_removes_what_a_killed_one_left(executor, base, tmp_path):
    argv = [sys.executable, "-c", HOST, base, tmp_path]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as host:
        assert host.stdout.readline() == b"\n"
        (left,) = os.listdir(tmp_path)
        others = tmp_path / "sandboxlib-upper-of-somebody"
        others.write_text("no directory")
        look = "import sys; from sandboxlib._runs.on_disk import sweep; sweep(sys.argv[1], print)"
        subprocess.run([sys.executable, "-c", look, tmp_path], check=True)
        assert left in os.listdir(tmp_path)  # its host lives
        host.send_signal(signal.SIGKILL)
        host.wait()
    for _ in range(100):  # a process that is being killed still has the overlay mounted
        subprocess.run([sys.executable, "-c", look, tmp_path], check=True)
        if left not in os.listdir(tmp_path):
            break
        time.sleep(0.1)
    assert os.listdir(tmp_path) == [others.name]


def test_an_upper_that_was_given_keeps_the_changes(run, base, tmp_path):
    with Sandbox(Overlay(base, upper=tmp_path / "work")) as box:
        first = run(box, sh("echo x >> /log; rm -f /lib/one; wc -l < /log; chmod 711 /"))
        second = run(box, sh("echo x >> /log; wc -l < /log; ls /lib; stat -c %a /"))
    assert int(second.stdout.split()[0]) > int(first.stdout)
    assert second.stdout.split()[1:] == [b"711"]
    assert os.path.exists(base / "lib" / "one")


def test_an_upper_is_refused_for_other_layers(executor, base, tmp_path):
    layer = tmp_path / "layer"
    layer.mkdir()
    work = tmp_path / "work"
    with Sandbox(Overlay(base, upper=work)) as box:
        box.run(["true"])
    with pytest.raises(SetupError, match="other layers: directory") as caught:
        Sandbox(Overlay(base, layer, upper=work)).run(["true"])
    assert caught.value.errno == errno.ESTALE
    (work / "layers").write_text("attributes of.another.*\n")
    with pytest.raises(SetupError, match="another kind of caller"):
        Sandbox(Overlay(base, upper=work)).run(["true"])


def test_a_directory_with_other_files_is_no_upper(executor, base, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SetupError, match="takes an empty directory") as caught:
        Sandbox(Overlay(base, upper=tmp_path)).run(["true"])
    assert caught.value.errno == errno.ENOTEMPTY
    assert (tmp_path / "mine").read_text() == "mine"


def test_two_runs_on_one_upper_come_one_after_the_other(executor, base, tmp_path):
    line = "echo in >> /log; sleep 0.2; echo out >> /log; cat /log"
    box = Sandbox(Overlay(base, upper=tmp_path / "work"))
    told = []
    threads = [threading.Thread(target=lambda: told.append(box.run(sh(line)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(each.stdout) for each in told) == [7, 14, 21]
    assert max((each.stdout for each in told), key=len) == b"in\nout\n" * 3


def test_runs_of_one_event_loop_take_turns(executor, base, tmp_path):
    box = Sandbox(Overlay(base, upper=tmp_path / "work"))

    async def both():
        return await asyncio.gather(*(box.run_async(sh("echo x >> /l; wc -l < /l")) for _ in "ab"))

    assert sorted(int(each.stdout) for each in asyncio.run(both())) == [1, 2]


def test_an_upper_in_use_is_refused_or_waited_for_until_the_timeout(executor, base, tmp_path):
    work = tmp_path / "work"
    with Sandbox(Overlay(base, upper=work)).start(["sleep", "60"]) as process:
        with pytest.raises(SetupError, match="busy='wait'") as caught:
            Sandbox(Overlay(base, upper=work, busy="refuse")).run(["true"])
        assert caught.value.errno == errno.EBUSY
        began = time.monotonic()
        with pytest.raises(SetupError) as caught:
            Sandbox(Overlay(base, upper=work)).run(["true"], timeout=0.3)
        assert caught.value.errno == errno.ETIMEDOUT
        assert 0.3 <= time.monotonic() - began < 10
        process.kill()
    assert Sandbox(Overlay(base, upper=work, busy="refuse")).run(["true"]).ok


def test_the_changes_of_an_upper_that_was_given_keep_it_until_they_are_closed(
    executor, base, tmp_path
):
    overlay = Overlay(base, upper=tmp_path / "work", busy="refuse")
    with Sandbox(overlay) as box:
        with box.run(sh("echo x > /x"), changes="keep").changes, pytest.raises(SetupError):
            box.run(["true"])
        assert box.run(["cat", "/x"]).stdout == b"x\n"


def test_no_descriptor_is_left(executor, base, tmp_path):
    with Sandbox(Overlay(base, upper=tmp_path / "work")) as box:
        box.run(["true"])
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            box.run(["true"], changes="keep").changes.close()
            box.run(["true"])
            with pytest.raises(SetupError):
                box.run(["/none"])
        assert len(os.listdir("/proc/self/fd")) == before


def test_an_upper_that_was_given_is_no_leftover_whatever_its_name(executor, base, tmp_path):
    from sandboxlib._runs.on_disk import PREFIX, sweep

    upper = tmp_path / f"{PREFIX}mine"
    with Sandbox(Overlay(base, upper=upper)) as box:
        box.run(sh("echo precious > /kept"))
        sweep(str(tmp_path), os.rmdir)
        assert box.run(["cat", "/kept"]).stdout == b"precious\n"


@pytest.mark.parametrize("kind", ["storage", "upper"])
def test_a_layer_that_is_missing_is_named_beside_an_upper_on_disk(executor, base, tmp_path, kind):
    overlay = Overlay(base, tmp_path / "none", **{kind: tmp_path})
    with pytest.raises(SetupError, match="has to be there") as caught:
        Sandbox(overlay).run(["true"])
    assert (caught.value.step, caught.value.errno) == ("layer", errno.ENOENT)
    assert str(tmp_path / "none") in str(caught.value)


def test_a_new_upper_that_another_process_took_for_a_leftover(
    executor, base, tmp_path, monkeypatch
):
    from sandboxlib._runs import on_disk

    mkdir, made = os.mkdir, []

    def taken(path, *args, **options):
        mkdir(path, *args, **options)
        if on_disk.PREFIX in str(path) and not made:
            made.append(path)
            on_disk.sweep(str(tmp_path), os.rmdir)

    monkeypatch.setattr(on_disk.os, "mkdir", taken)
    with Sandbox(Overlay(base, storage=tmp_path)) as box:
        assert box.run(["true"]).ok
    assert made


KEEPER = """
import sys
from sandboxlib import Overlay, Sandbox
box = Sandbox(Overlay(sys.argv[1], upper=sys.argv[2]))
box.run(["sh", "-c", "echo there; sleep 60"], stdout=1)
"""


async def turns_beside(run):
    """How often another task gets its turn until a run is refused."""
    task, turns = asyncio.ensure_future(run), 0
    while not task.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert task.exception().errno == errno.EBUSY
    return turns


def test_a_run_whose_host_was_killed_is_waited_for(executor, base, tmp_path):
    upper = tmp_path / "upper"
    argv = [*python(), "-c", KEEPER, str(base), str(upper)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as host:
        assert host.stdout.read(6) == b"there\n"
        wait_until(lambda: (upper / "lock").read_text())
        pid = int((upper / "lock").read_text().split()[0])
        pidfd = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGSTOP)  # it cannot see that its caller is gone
            host.kill()
            host.wait()
            box = Sandbox(Overlay(base, upper=upper))
            with pytest.raises(SetupError) as caught:
                box.run(["true"], timeout=0.3)
            assert (caught.value.errno, caught.value.step) == (errno.EBUSY, "upper")
            assert str(pid) in str(caught.value)
            with pytest.raises(SetupError):
                Sandbox(Overlay(base, upper=upper, busy="refuse")).run(["true"])
            assert asyncio.run(turns_beside(box.run_async(["true"], timeout=0.5))) > 5
            os.kill(pid, signal.SIGCONT)
            assert box.run(["true"], timeout=60).ok
            assert select.select([pidfd], [], [], 0)[0]
        finally:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
    assert (upper / "lock").read_text() == ""
