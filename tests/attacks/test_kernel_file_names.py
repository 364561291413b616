# SPDX-License-Identifier: Apache-2.0
"""What the host's kernel shows is read-only by whatever name it was reached: through links, "..",
/proc/self; also where it lies deeper than one would look.

As in test_kernel_files.py, files are opened for writing and nothing is written.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, not_sanitized, python, require
from test_kernel_files import OPEN, PYTHON, WAYS, look, of_cgroups

from sandboxlib import Mount, bubblewrap, user_namespace
from sandboxlib._host import machine
from sandboxlib._runs import mounts as _mounts
from sandboxlib._runs import plan

pytestmark = needs_root


@pytest.mark.parametrize("way", WAYS)
def test_a_bind_by_any_name_is_sealed(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(way != "bubblewrap" or not bubblewrap.why_not(), "bwrap does not work here")
    of_cgroups()
    link = tmp_path / "link"
    link.symlink_to("/")
    monkeypatch.chdir("/usr/bin")
    paths = ["/mnt/sys/power/state", "/mnt/proc/sys/kernel/core_pattern"]
    for source in ("/", link, "/usr/..", "//", "/proc/self/root", "../..", link / "usr" / ".."):
        with open_box("/", extra_mounts=[Mount.bind(source, "/mnt")]) as box:
            assert look(box, paths, way) == ["30", "30"], source


HOST = """
import os, subprocess, sys
from sandboxlib import Mount, Sandbox, bubblewrap
root, source, executor, *argv = sys.argv[1:]
run = lambda args: subprocess.run(args, check=True)
os.makedirs(f"{root}/sys/fs/cgroup")
os.makedirs(f"{root}/mnt")
os.symlink(root, f"{root}.link")
for place in ("usr", "bin", "lib", "lib64", "root"):
    if os.path.isdir(f"/{place}"):
        os.makedirs(f"{root}/{place}")
        run(["mount", "--rbind", f"/{place}", f"{root}/{place}"])
run(["mount", "--bind", source, f"{root}/sys/fs/cgroup"])
for place in (root, f"{root}.link", f"{root}/../{os.path.basename(root)}"):
    with Sandbox(place, extra_mounts=[Mount.bind(place, "/mnt")]) as box:
        for fresh in (True, False):
            if executor:
                result = bubblewrap.run_in(box, argv, cwd="/")
            else:
                result = box.run(argv, cwd="/", fresh=fresh)
            assert result.out == b"30\\n30\\n", (place, result)
print("sealed")
"""


@pytest.mark.parametrize("executor", ["", "bubblewrap"])
def test_cgroups_where_sysfs_is_not(executor: str, tmp_path: Path) -> None:
    require(not executor or not bubblewrap.why_not(), "bwrap does not work here")
    files = of_cgroups()
    inside = ["/sys/fs/cgroup/cgroup.procs", "/mnt/sys/fs/cgroup/cgroup.procs"]
    words = [str(tmp_path / "root"), os.path.dirname(files[-1]), executor]
    command = [PYTHON, "-I", "-S", "-c", OPEN, *inside]
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", *python(), "-c", HOST, *words, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout == "sealed\n", done.stderr


def test_what_lies_below_another_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [("/", "ext4"), ("/sys", "sysfs"), ("/sys/fs/cgroup", "cgroup2"), ("/proc", "proc")]
    points += [("/srv/sys", "sysfs"), ("/srv/sys", "tmpfs"), ("/srv/sys/a", "cgroup")]
    mounts = [machine.Mounted(0, "/", point, kind, "") for point, kind in points]
    monkeypatch.setattr(machine, "mounts", lambda: mounts)
    assert _mounts.seal_paths("/", "/", ()) == ["/sys", "/srv/sys/a"]
    assert _mounts.seal_paths("/srv", "/x", ()) == ["/x/sys/a"]
    assert _mounts.seal_paths("/usr", "/", ("/proc",)) == ["/proc", "/sys"]
    by_any_name = {"/x/a", "/x/cgroup", "/x/fs/cgroup", "/x/proc", "/x/srv/sys/a", "/x/sys"}
    by_any_name |= {"/x/sys/a", "/x/sys/fs/cgroup"}
    assert set(_mounts.seal_paths("usr", "/x", ())) == by_any_name


MOVED = """
import os, subprocess, sys
from sandboxlib import Sandbox
root, source, words, *argv = sys.argv[1:]
run = lambda args: subprocess.run(args, check=True)
os.makedirs(f"{root}/srv/a/cgroup")
os.makedirs(f"{root}/srv/a/proc")
for place in ("usr", "bin", "lib", "lib64", "root"):
    if os.path.isdir(f"/{place}"):
        os.makedirs(f"{root}/{place}")
        run(["mount", "--rbind", f"/{place}", f"{root}/{place}"])
run(["mount", "--bind", source, f"{root}/srv/a/cgroup"])
run(["mount", "--bind", "/proc", f"{root}/srv/a/proc"])
with Sandbox(root, filesystem_writable_paths=eval(words)) as box:
    look = lambda place, fresh: box.run([*argv, f"/srv/{place}/cgroup/cgroup.procs",
        f"/srv/{place}/proc/sys/kernel/core_pattern"], cwd="/", fresh=fresh).out
    assert look("a", True) == look("a", False) == b"30\\n30\\n"
    assert box.run(["mv", "/srv/a", "/srv/b"], cwd="/").exit == 0
    assert look("b", True) == look("b", False) == b"30\\n30\\n", look("b", True)
    box.close()
    assert look("b", False) == b"30\\n30\\n"
print("sealed")
"""


@pytest.mark.parametrize("words", ["'all'", "['/srv']"])
def test_a_command_cannot_move_them_out_of_sight(words: str, tmp_path: Path) -> None:
    """It renames a directory on the way to what the host has mounted below the root."""
    kernel = tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])
    if kernel < (6, 8):
        pytest.skip("Linux before 6.8 does not tell what is mounted where")
    source = os.path.dirname(of_cgroups()[-1])
    argv = [str(tmp_path / "root"), source, words, PYTHON, "-I", "-S", "-c", OPEN]
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", *python(), "-c", MOVED, *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout == "sealed\n", done.stderr


CLOSED = """
import os, subprocess, sys
place, package, *become = sys.argv[1:]
for kind in ("proc", "sysfs"):
    os.makedirs(f"{place}/{kind}")
    subprocess.run(["mount", "-t", kind, kind, f"{place}/{kind}"], check=True)
os.chmod(place, 0o700)
program = '''
from sandboxlib import Sandbox, user_namespace
for user in ("caller", "root"):
    assert user_namespace.run_in(Sandbox("/", user=user), ["true"], cwd="/").exit == 0
print("ran")
'''
os.environ["PYTHONPATH"] = package
os.chdir("/")
os.execvp(become[0], [*become, "-c", program])
"""


@not_sanitized
def test_what_a_user_cannot_reach_keeps_no_run_from_him(tmp_path: Path) -> None:
    require(not user_namespace.why_not(), "there are no user namespaces")
    package = str(Path(plan.__file__).resolve().parents[2])
    become = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", *python()]
    argv = [*python(), "-c", CLOSED, str(tmp_path / "closed"), package, *become]
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout == "ran\n", done.stderr
