# SPDX-License-Identifier: Apache-2.0
"""Nothing of a run is left: not after thousands of them, not after a failure or an interrupt."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lib import hosts
from lib.machine import needs_root, require

pytestmark = needs_root

MODES = {
    **hosts.MODES,
    "bare": {"mounts": "undefined", "processes": "undefined", "ipc": "undefined"},
}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())

HEAD = """
isolated = mode.get("mounts", "isolated") == "isolated"

def descriptors():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:  # that of listdir
            pass
    return sorted(found)

def state():
    gc.collect()
    sandboxlib._runs.slots.close_all()
    return {
        "descriptors": descriptors(),
        "children": open(f"/proc/self/task/{os.getpid()}/children").read(),
        "threads": threads(),
        "mounts": [line for line in open("/proc/self/mountinfo") if " - fuse" not in line],
        "root": sorted(os.listdir(root)),
    }

def no_child():
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return
    raise AssertionError("a child is left")

def attempt(box, *words, **more):
    try:
        return box.run(*words, **more)
    except (SetupError, SpecError) as error:
        return error
    finally:
        no_child()
"""

CASES = """
def box(**words):
    return open_box(root, **{**mode, **words})

def mounted(*mounts, **words):
    return box(extra_mounts=mounts, **words)

closed = os.open("/", os.O_RDONLY)
os.close(closed)
plain = box()
cases = {
    "success": lambda: plain.run(["true"]),
    "failure": lambda: plain.run(["false"]),
    "death": lambda: plain.run(["sh", "-c", "kill -9 $$"]),
    "output": lambda: plain.run(["head", "-c", "200000", "/bin/busybox"]),
    "stdin": lambda: plain.run(["cat"], stdin=b"x" * 100000),
    "no program": lambda: attempt(plain, ["nonesuch"]),
    "no interpreter": lambda: attempt(plain, ["/etc"]),
    "too long": lambda: attempt(plain, ["true", "x" * 200000]),
    "no cwd": lambda: attempt(plain, ["true"], cwd="/none"),
    "no root": lambda: attempt(open_box("/none/such", **mode), ["true"]),
    "no descriptor": lambda: attempt(plain, ["true"], stdin=closed),
    "no capability": lambda: attempt(box(policy=Policy(capabilities=["sys_resource"])), ["true"]),
    "bad word": lambda: attempt(plain, ["tr\\0ue"]),
}
slow = {
    "timeout at once": lambda: attempt(plain, ["sleep", "60"], timeout=0),
    "timeout": lambda: attempt(plain, ["sleep", "60"], timeout=0.002),
    "network": lambda: attempt(box(network="isolated"), ["true"]),
}
if isolated:
    bad = Mount.bind("/none/such", "/tmp")
    cases |= {
        "mounts": lambda: mounted(Mount.tmpfs("/tmp"), Mount.dev()).run(["true"]),
        "stub": lambda: mounted(Mount.bind("/etc", "/made/x")).run(["true"]),
        "stub, then no program": lambda: attempt(
            mounted(Mount.bind("/etc", "/made/x")), ["nonesuch"]),
        "stub, then no source": lambda: attempt(
            mounted(Mount.bind("/etc", "/made/x"), bad), ["true"]),
        "no source": lambda: attempt(mounted(Mount.tmpfs("/tmp"), bad), ["true"]),
        "no target": lambda: attempt(mounted(Mount.bind("/etc", "/bin/sh/x")), ["true"]),
        "no mount": lambda: attempt(mounted(Mount.bind("/etc", "/bin/busybox")), ["true"]),
        "read-only": lambda: box(filesystem_writable_paths=["/tmp"]).run(["true"]),
        "no hole": lambda: attempt(box(filesystem_writable_paths=["/none"]), ["true"]),
    }
"""


def host(script: str, root: Path, mode: object = None, wrapper: Any = (), **words: Any) -> str:
    return hosts.run(HEAD + script, root, mode, wrapper, **words)


@pytest.mark.slow
@modes
def test_two_thousand_runs_of_all_kinds_leave_nothing(
    shared_rootfs: Path, mode: dict[str, object]
) -> None:
    script = """
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
def some(count):
    for i in range(count):
        for call in cases.values():
            call()
        if i % 8 == 0:
            for call in slow.values():
                call()
some(9)
before, size = state(), resident()
some(2000 // len(cases) + 1)
after = state()
assert after == before, {k: (v, after[k]) for k, v in before.items() if v != after[k]}
if "SANDBOXLIB_SANITIZED" not in os.environ:  # a sanitizer keeps what is freed
    assert resident() - size < 4 << 20, (resident(), size)
"""
    host(CASES + script, shared_rootfs, mode)


@modes
def test_each_kind_of_run_by_itself_leaves_nothing(
    shared_rootfs: Path, mode: dict[str, object]
) -> None:
    script = """
plain.run(["true"])
before = state()
for name, call in {**cases, **slow}.items():
    call()
    no_child()
    assert state() == before, name
print(len(cases))
"""
    assert int(host(CASES + script, shared_rootfs, mode)) > 12


def test_threads_that_run_and_end_leave_nothing(shared_rootfs: Path) -> None:
    script = """
def some(count):
    started = [threading.Thread(target=each) for each in [*cases.values()] * count]
    [thread.start() for thread in started]
    [thread.join() for thread in started]
no_child = lambda: None  # others have theirs
some(2)
before = state()
for _ in range(10):
    some(2)
assert state() == before
"""
    host(CASES + script, shared_rootfs)


def test_namespaces_are_given_back(shared_rootfs: Path) -> None:
    # With room for 60 of each kind, 240 runs find one (--all: 600): were one in four kept (in ten),
    # it would be over. The
    # kernel takes its time to let go of a network, so that is waited for.
    kinds = "mnt pid ipc uts net cgroup"
    limit = f"for kind in {kinds}; do echo 60 > /proc/sys/user/max_${{kind}}_namespaces; done"
    wrapper = ("unshare", "-Ur", "sh", "-c", f'{limit} && exec "$@"', "sh")
    probe = subprocess.run([*wrapper, "true"], capture_output=True, check=False)
    require(probe.returncode == 0, "no user namespace can be made")
    script = """
import errno
def found(call):
    end = time.monotonic() + 60
    while True:
        result = call()
        if getattr(result, "errno", None) != errno.ENOSPC:
            return result
        assert time.monotonic() < end, "no namespace is given back"
        time.sleep(0.05)
box = Sandbox(root, network="isolated")
for i in range(many(120, 300)):
    assert found(lambda: attempt(box, ["true"])) == (0, b"", b"")
    assert found(lambda: attempt(box, ["nonesuch"])).step == "exec"
"""
    host(script, shared_rootfs, wrapper=wrapper)


def test_keyrings_are_given_back(shared_rootfs: Path) -> None:
    require(Path("/proc/keys").exists(), "the kernel has no keyrings")
    script = """
def keys():
    return len(open("/proc/keys").readlines())
box = Sandbox(root, init=False)
before = keys()
for _ in range(many(200, 1000)):
    box.run(["true"])
end = time.monotonic() + 60
while keys() > before + 50 and time.monotonic() < end:  # their collector has its own time
    time.sleep(0.1)
assert keys() <= before + 50, (before, keys())
"""
    host(script, shared_rootfs)


# ---- interrupts ------------------------------------------------------------------------------

# CPython looks for signals, and for exceptions that other threads set, where a function begins and
# where a call of a C function has come back: just where a profiler is called. So an exception that
# is raised by a profiler at the k-th such point is an interrupt at that point, for every k,
# or, in the quick set, every 11th.
INJECT = """
import sandboxlib
package = os.path.dirname(sandboxlib.__file__)

class Stop(BaseException):
    pass

def interrupt(call, k):
    "Where it was interrupted, or None if it was over before."
    left, where = k, None
    def profile(frame, event, arg):
        nonlocal left, where
        code = frame.f_code
        if not code.co_filename.startswith(package) or event not in ("call", "c_return"):
            return
        left -= 1
        if left == 0:
            where = f"{code.co_name}:{frame.f_lineno} {getattr(arg, '__name__', '')}"
            raise Stop
    sys.setprofile(profile)
    try:
        call()
    except Stop:
        pass
    except OSError as error:
        where = f"{where}: {error!r} instead of the interrupt"
    finally:
        sys.setprofile(None)
    return where

def undo(before):
    for fd, _ in set(descriptors()) - set(before["descriptors"]):
        os.close(fd)
    shutil.rmtree(root + "/made", ignore_errors=True)

def bad_points(call, expected, step=many(11, 1)):
    for _ in range(3):
        assert call() == expected
    before, found = state(), []
    for k in range(1, 2000, step):
        where = interrupt(call, k)
        if where is None:
            return k, found
        if state() != before or "instead" in where:
            found.append(where)
            undo(before)
        assert call() == expected, where
    raise AssertionError("it has no end")
"""


@pytest.mark.parametrize(
    "call",
    [
        'Sandbox(root).run(["echo", "x"])',
        'Sandbox(root).run(["echo", "x"], timeout=60)',
        'Sandbox(root, network="isolated", init=False).run(["echo", "x"])',
        'open_box(root, processes="undefined").run(["echo", "x"])',
    ],
)
def test_an_interrupt_at_any_point_leaves_nothing(rootfs: Path, call: str) -> None:
    script = (
        INJECT
        + f"""
points, bad = bad_points(lambda: {call}, (0, b"x\\n", b""))
assert not bad, "\\n".join(bad)
print(points)
"""
    )
    assert int(host(script, rootfs)) > 30


@pytest.mark.parametrize("call", ['run(["nonesuch"])', 'run(["true"], cwd="/none")'])
def test_an_interrupt_at_any_point_of_a_failure_leaves_nothing(rootfs: Path, call: str) -> None:
    script = (
        INJECT
        + f"""
def fails():
    try:
        Sandbox(root).{call}
    except FileNotFoundError as error:
        return error.step
points, bad = bad_points(fails, fails())
assert not bad, "\\n".join(bad)
print(points)
"""
    )
    assert int(host(script, rootfs)) > 30


def test_an_interrupt_at_any_point_of_a_command_in_a_session_leaves_nothing(rootfs: Path) -> None:
    script = (
        INJECT
        + """
session = Sandbox(root).session()
points, bad = bad_points(lambda: session.run(["echo", "x"]), (0, b"x\\n", b""), step=many(3, 1))
assert not bad, "\\n".join(bad)
session.close()
print(points)
"""
    )
    assert int(host(script, rootfs)) > 30


def test_an_interrupt_at_any_point_of_a_look_leaves_nothing(rootfs: Path) -> None:
    # What the host looks at to explain a failure: all of it, also in the quick set.
    (rootfs / "bin" / "script").symlink_to("/lib/no-interpreter")
    (rootfs / "lib").mkdir(exist_ok=True)
    (rootfs / "lib" / "no-interpreter").write_text("#!/none\n")
    (rootfs / "lib" / "no-interpreter").chmod(0o755)
    script = (
        INJECT
        + """
package = os.path.join(package, "_runs", "look.py")
from sandboxlib._runs.look import Look
box = Sandbox(root)
def looks():
    with Look(box) as look:
        found = look.find("/bin/script")
        look.read(found, 100)
        look.is_noexec(found)
        return look.find("/none/such").missing
points, bad = bad_points(looks, "/none", step=1)
assert not bad, "\\n".join(bad)
print(points)
"""
    )
    assert int(host(script, rootfs)) > 30


def test_the_profiler_interrupts_where_it_says(rootfs: Path) -> None:
    # A control for the tests above: they do find a descriptor that leaks.
    script = (
        INJECT
        + """
def careless():
    fd = os.open("/", os.O_RDONLY)
    os.close(fd)
package = careless.__code__.co_filename
points, bad = bad_points(careless, None, step=1)
print(len(bad), bad[0])
"""
    )
    count, _, where = host(script, rootfs).partition(" ")
    assert (int(count), where.split()[-1]) == (1, "open")


@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace")
@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize(
    "call",
    "setsid keyctl mount openat2 open_tree move_mount pivot_root umount2 fchdir capset".split(),
)
def test_a_child_that_is_killed_in_its_set_up_is_no_success(
    shared_rootfs: Path, call: str, init: bool
) -> None:
    # As an out-of-memory killer would: the k-th call of the child is its last.
    script = """
# No trial, which would be killed as well.
sandboxlib._choice.choose.run_command = sandboxlib.chroot.run_command
box = open_box(root, filesystem_writable_paths="none", extra_mounts=[Mount.tmpfs("/tmp")], **mode)
gc.disable()
before = None
for _ in range(3):
    result = attempt(box, ["echo", "x"], cwd="/tmp")
    assert not (isinstance(result, tuple) and result.exit == 0), result
    assert before is None or state() == before
    before = state()
print("ended")
"""
    inject = f"inject={call}:signal=SIGKILL:when=1"
    wrapper = ("strace", "-f", "-qq", "-e", f"trace={call}", "-e", inject, "-o", "/dev/null")
    assert host(script, shared_rootfs, {"init": init, "fresh": True}, wrapper) == "ended\n"
