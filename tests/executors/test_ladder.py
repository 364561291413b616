# SPDX-License-Identifier: Apache-2.0
"""The choice of executor, on machines that forbid things for real.

Each machine is this one, in a mount namespace of its own, with something taken away: privilege,
a program, user namespaces. None of it is seen outside.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, python, require

import sandboxlib
from sandboxlib import Policy
from sandboxlib._choice import choose
from sandboxlib._host import machine as _machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lib.setuid_tool import SetuidTool

pytest_plugins = ["lib.setuid_tool"]

NOBODY = 65534

PACKAGE = Path(sandboxlib.__file__).resolve().parents[1]
KINDS = ("network", "mounts", "processes", "ipc")

# ---- machines --------------------------------------------------------------------------------

USER = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
NO_NEW_PRIVS = ("setpriv", "--no-new-privs")
NO_SYS_ADMIN = ("setpriv", "--bounding-set=-sys_admin")
FAKE_ROOT = ("unshare", "--user", "--map-root-user")
WITHOUT_TOOL = "/usr/bin:/bin:/usr/sbin:/sbin"


def shell(script: str, *args: str) -> tuple[str, ...]:
    return ("sh", "-ec", f'{script}; exec "$@"', *(args or ("sh",)))


def hidden(*programs: str) -> tuple[str, ...]:
    """Without these programs, wherever they are installed."""
    paths = [path for path in map(shutil.which, programs) if path]
    return shell("; ".join(["true", *(f"mount --bind /dev/null {path}" for path in paths)]))


# A user namespace with all ids, in which the limits on further namespaces can be set. It is entered
# by hand because unshare(1) would ask newuidmap for more than one id.
_LIMITED = """
import ctypes, os, sys
reader, writer = os.pipe()
caller = os.getpid()
child = os.fork()
if child == 0:
    os.read(reader, 1)
    for kind in ("uid", "gid"):
        with open(f"/proc/{caller}/{kind}_map", "w") as file:
            file.write("0 0 65536")
    os._exit(0)
assert ctypes.CDLL(None).unshare(0x10000000) == 0  # CLONE_NEWUSER
os.write(writer, b"x")
assert os.waitpid(child, 0)[1] == 0
for kind in sys.argv[1].split():
    with open(f"/proc/sys/user/max_{kind}_namespaces", "w") as file:
        file.write("0")
os.execvp(sys.argv[2], sys.argv[2:])
"""


def limited(kinds: str) -> tuple[str, ...]:
    """With sysctl user.max_*_namespaces at 0 for these kinds; their own, not the machine's."""
    return (sys.executable, "-c", _LIMITED, kinds)


#: In a chroot there are no user namespaces (user_namespaces(7)); linux-user-chroot works there
#: where the root is a mount point.
CHROOT = shell(
    'mkdir -p "$0/whole"; mount --rbind / "$0/whole"; set -- chroot "$0/whole" "$@"', "PLACE"
)
#: The same where it is none: no file system of its own, but every directory of / in it.
BARE_CHROOT = shell(
    'mkdir "$0/whole"; for at in /*; do '
    'if [ -L "$at" ]; then cp -P "$at" "$0/whole$at"; '
    'elif [ -d "$at" ]; then mkdir "$0/whole$at"; mount --rbind "$at" "$0/whole$at"; fi; done; '
    'set -- chroot "$0/whole" "$@"',
    "PLACE",
)
SET_USER_ID_BWRAP = shell('install -m 4755 "$(command -v bwrap)" "$0/bwrap"', "PLACE")

#: Requests, each with the executor that runs it; see Machine.runs.
ASKED: dict[str, dict[str, Any]] = {
    "nothing special": {},
    "network": {"network": "isolated"},
    "no init": {"init": False},
    "a hostname": {"hostname": "box"},
    "a capability": {"policy": {"capabilities": ["net_admin"]}},
    "a file": {"extra_mounts": [("/etc/passwd", "/etc/passwd", None, "bind")]},
    "to be root": {"user": "root"},
    "privileges": {"policy": {"no_new_privs": False}},
    "nothing": dict.fromkeys(KINDS, "undefined"),
}

_REPORT = """
import json, sys
import sandboxlib
from sandboxlib import Sandbox
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})

def told(call):
    try:
        return [call(), ""]
    except sandboxlib.SandboxError as error:
        return [type(error).__name__, str(error)]

def run(words):
    if "policy" in words:
        words["policy"] = sandboxlib.Policy(**words["policy"])
    result = open_box("/", **words).run(["true"])
    assert result == (0, b"", b""), result
    return result.executor

print(json.dumps({
    "chosen": told(lambda: sandboxlib.executor_for_platform().NAME),
    "doctor": sandboxlib.doctor(),
    "runs": {name: told(lambda: run(words)) for name, words in json.loads(sys.argv[1]).items()},
}))
"""


@dataclass
class Machine:
    """A machine that lacks something, and the executors that work there.

    works: the executors that work, by initial; the first is the one that is chosen.
    runs: for each thing in ASKED the initial of the executor that runs it, - for none.
    causes: for executors that do not work a word of the cause that the doctor finds.
    """

    works: str
    runs: str
    causes: dict[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = USER
    path: str | None = None
    mode: str = "4755"
    options: str = "suid"


NOT_ROOT = {"chroot": "not root"}
FORBIDDEN = "sysctl user.max_user_namespaces is 0"
NO_USER_NAMESPACES = {"user_namespace": FORBIDDEN, "bubblewrap": FORBIDDEN}

MACHINES = {
    "root": Machine("club", "ccccccccc", before=()),
    "root without CAP_SYS_ADMIN": Machine(
        "u", "uuuuuuuuc", {"chroot": "root lacks CAP_SYS_ADMIN"}, before=NO_SYS_ADMIN
    ),
    "root without CAP_SYS_ADMIN and user namespaces": Machine(
        "",
        "--------c",
        {"chroot": "root lacks CAP_SYS_ADMIN", **NO_USER_NAMESPACES},
        before=(*limited("user"), *NO_SYS_ADMIN),
    ),
    "root of a user namespace": Machine("cub", "ccccccccc", before=(*USER, *FAKE_ROOT)),
    "root of a user namespace that allows no further one": Machine(
        "cb",
        "ccccccccc",
        {"user_namespace": FORBIDDEN},
        before=(*USER, *FAKE_ROOT, *shell("echo 0 > /proc/sys/user/max_user_namespaces")),
    ),
    "user": Machine("lub", "llluuuuul", NOT_ROOT),
    "user, no linux-user-chroot": Machine(
        "ub",
        "uuuuuuuuu",
        {**NOT_ROOT, "linux_user_chroot": "there is no linux-user-chroot"},
        path=WITHOUT_TOOL,
    ),
    "user, linux-user-chroot without its bit": Machine(
        "ub", "uuuuuuuuu", {**NOT_ROOT, "linux_user_chroot": "not set-user-ID root"}, mode="755"
    ),
    "user, linux-user-chroot on a nosuid mount": Machine(
        "ub", "uuuuuuuuu", {**NOT_ROOT, "linux_user_chroot": "nosuid"}, options="nosuid"
    ),
    "user with no_new_privs": Machine(
        "ub",
        "uuuuuuuuu",
        {**NOT_ROOT, "linux_user_chroot": "no_new_privs is set"},
        before=(*USER, *NO_NEW_PRIVS),
    ),
    "user, no bwrap": Machine(
        "lu",
        "llluuuuul",
        {**NOT_ROOT, "bubblewrap": "there is no bwrap"},
        before=(*hidden("bwrap"), *USER),
    ),
    "user, linux-user-chroot alone": Machine(
        "l", "lll-----l", NOT_ROOT, before=(*CHROOT, *hidden("bwrap"), *USER)
    ),
    "user, a set-user-ID bwrap alone": Machine(
        "b",
        "bbbb-b--b",
        {**NOT_ROOT, "linux_user_chroot": "not set-user-ID root"},
        before=(*SET_USER_ID_BWRAP, *CHROOT, *USER),
        mode="755",
    ),
    "user, in a chroot that is no mount point": Machine(
        "",
        "---------",
        {**NOT_ROOT, "user_namespace": "in a chroot", "bubblewrap": "in a chroot"},
        before=(*BARE_CHROOT, *USER),
    ),
    "user, parts of /proc hidden, no linux-user-chroot": Machine(
        "ub",
        "--------u",
        {**NOT_ROOT, "user_namespace": "/proc are hidden", "bubblewrap": "/proc are hidden"},
        before=(*shell("mount -t tmpfs none /proc/irq"), *USER),
        path=WITHOUT_TOOL,
    ),
    "user, no user namespaces, no linux-user-chroot": Machine(
        "",
        "---------",
        {**NOT_ROOT, "linux_user_chroot": "there is no linux-user-chroot", **NO_USER_NAMESPACES},
        before=(*limited("user"), *USER),
        path=WITHOUT_TOOL,
    ),
    "user, no user namespaces, linux-user-chroot on a nosuid mount": Machine(
        "",
        "---------",
        {**NOT_ROOT, "linux_user_chroot": "nosuid", **NO_USER_NAMESPACES},
        before=(*limited("user"), *USER),
        options="nosuid",
    ),
    "user with no_new_privs, no user namespaces, no bwrap": Machine(
        "",
        "---------",
        {
            **NOT_ROOT,
            "linux_user_chroot": "no_new_privs is set",
            "user_namespace": FORBIDDEN,
            "bubblewrap": "there is no bwrap",
        },
        before=(*hidden("bwrap"), *limited("user"), *USER, *NO_NEW_PRIVS),
    ),
}

NAMES = {name[0]: name for name in choose.EXECUTORS}


def on(tool: SetuidTool, machine: Machine, *argv: str, **env: str) -> Any:
    """A program on a machine."""
    for program in ("bwrap", "newuidmap"):
        require(shutil.which(program), f"there is no {program}")
    if machine.path is not None:
        env["PATH"] = machine.path
    env = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(PACKAGE), **env}
    before = tuple(str(tool.place) if word == "PLACE" else word for word in machine.before)
    words = {"uid": 0, "mode": machine.mode, "options": machine.options, "before": before}
    return tool.run(*argv, **words, **env)


def python_on(tool: SetuidTool, machine: Machine, script: str, *args: str, **env: str) -> str:
    """Run a Python script on a machine, which must succeed, and return its output."""
    done = on(tool, machine, *python(), "-W", "error", "-c", script, *args, **env)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.fixture(scope="session")
def report(setuid_tool: SetuidTool) -> Callable[[str], dict[str, Any]]:
    """The answers of sandboxlib on a machine; it is asked once."""
    known: dict[str, dict[str, Any]] = {}

    def find(name: str) -> dict[str, Any]:
        if name not in known:
            known[name] = json.loads(
                python_on(setuid_tool, MACHINES[name], _REPORT, json.dumps(ASKED))
            )
        return known[name]

    return find


@pytest.fixture(params=MACHINES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Report = Callable[[str], dict[str, Any]]


# ---- what is chosen --------------------------------------------------------------------------


def test_the_first_that_works_is_chosen(report: Report, name: str) -> None:
    works = [NAMES[initial] for initial in MACHINES[name].works]
    assert [found["name"] for found in report(name)["doctor"] if found["usable"]] == works
    chosen, text = report(name)["chosen"]
    if works:
        assert chosen == works[0]
    else:
        assert chosen == "UnsupportedError"
        assert_each_has_a_reason(text)


def assert_each_has_a_reason(text: str) -> None:
    """Each executor has a line, in the order of the ladder."""
    lines = [line.strip().partition(": ") for line in text.splitlines()[1:]]
    assert tuple(line[0] for line in lines) == choose.EXECUTORS
    assert all(line[2] for line in lines)


@pytest.mark.parametrize("asked", ASKED)
def test_each_request_goes_to_the_first_that_can_promise_it(
    report: Report, name: str, asked: str
) -> None:
    initial = MACHINES[name].runs[list(ASKED).index(asked)]
    ran, text = report(name)["runs"][asked]
    if initial == "-":
        assert ran == "UnsupportedError"
        assert_each_has_a_reason(text)
    else:
        assert (ran, text) == (NAMES[initial], "")


# ---- what the doctor finds -------------------------------------------------------------------


def test_the_doctor_names_the_cause_and_a_remedy(report: Report, name: str) -> None:
    for found in report(name)["doctor"]:
        assert bool(found["reason"]) != found["usable"]
        assert set(found["isolation"]) == ({*KINDS, "seccomp"} if found["usable"] else set())
        assert all(cause and remedy for cause, remedy in found["causes"])
        word = MACHINES[name].causes.get(found["name"])
        if word:
            assert [cause for cause, _ in found["causes"] if word in cause], found


def test_the_doctor_names_no_cause_that_is_none(report: Report) -> None:
    for found in report("root")["doctor"]:
        assert found["causes"] == []
    names = [found["name"] for found in report("user")["doctor"] if found["causes"]]
    lines = Path("/etc/subuid").read_text().splitlines() if os.path.exists("/etc/subuid") else []
    has_ranges = any(line.startswith(("nobody:", "65534:")) for line in lines)
    assert names == (["chroot"] if has_ranges else ["chroot", "user_namespace"])
    (ranges,) = (f for f in report("user")["doctor"] if f["name"] == "user_namespace")
    assert all(cause.startswith("user='ranges': ") for cause, _ in ranges["causes"])


def test_the_reasons_name_the_cause_as_well(report: Report) -> None:
    _, text = report("user with no_new_privs, no user namespaces, no bwrap")["chosen"]
    reasons = dict(line.strip().split(": ", 1) for line in text.splitlines()[1:])
    assert "CAP_SYS_ADMIN" in reasons["chroot"]
    assert "no_new_privs" in reasons["linux_user_chroot"]
    assert "user.max_user_namespaces is 0" in reasons["user_namespace"]
    assert "there is no bwrap" in reasons["bubblewrap"]
    _, text = report("user, linux-user-chroot alone")["runs"]["a hostname"]
    assert "linux_user_chroot: linux-user-chroot cannot set a hostname" in text


@pytest.mark.parametrize("executor", ["linux_user_chroot", "bubblewrap"])
def test_the_doctor_says_what_root_lacks_for_the_programs_as_well(
    report: Report, executor: str
) -> None:
    found = {f["name"]: f for f in report("root without CAP_SYS_ADMIN")["doctor"]}[executor]
    assert any("CAP_SYS_ADMIN" in cause for cause, _ in found["causes"])


@pytest.mark.parametrize("words", [["-m", "sandboxlib", "doctor"], ["run-sandbox"]])
def test_the_doctor_at_the_shell(setuid_tool: SetuidTool, words: list[str]) -> None:
    if words == ["run-sandbox"]:
        code = "import sys; from sandboxlib.__main__ import run_sandbox_command as run; "
        words = ["-c", code + "sys.exit(run(['doctor']))"]
    done = on(setuid_tool, MACHINES["user"], *python(), *words)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["chroot: does not work", *lines[1:2]]
    assert "    the caller is not root" in lines
    assert "        remedy: run as root, or use another executor" in lines
    assert "linux_user_chroot: works" in lines
    assert "chosen here: linux_user_chroot" in lines
    nothing = MACHINES["user, no user namespaces, no linux-user-chroot"]
    done = on(setuid_tool, nothing, *python(), *words)
    assert done.returncode == 0
    assert done.stdout.count(": does not work\n") == 4
    assert "chosen here: none\n" in done.stdout


def test_the_doctor_looks_where_the_executors_look(setuid_tool: SetuidTool) -> None:
    for program in ("bwrap", "newuidmap", "newgidmap"):
        require(os.path.exists(f"/usr/bin/{program}"), f"there is no /usr/bin/{program}")
    nothing = ("/usr/bin/env", "PATH=/none")
    machine = Machine("", "", before=(*limited("user"), *USER, *nothing))
    script = "import json, sandboxlib; print(json.dumps(sandboxlib.doctor()))"
    found = {f["name"]: f for f in json.loads(python_on(setuid_tool, machine, script))}
    assert not [cause for cause, _ in found["bubblewrap"]["causes"] if "there is no" in cause]
    user = Machine("", "", before=(*USER, *nothing))
    found = {f["name"]: f for f in json.loads(python_on(setuid_tool, user, script))}
    assert not [cause for cause, _ in found["user_namespace"]["causes"] if "there is no" in cause]


def test_the_remedy_for_nosuid_names_the_mount(setuid_tool: SetuidTool, report: Report) -> None:
    found = {f["name"]: f for f in report("user, linux-user-chroot on a nosuid mount")["doctor"]}[
        "linux_user_chroot"
    ]
    assert f"mount -o remount,suid {setuid_tool.place}" in [remedy for _, remedy in found["causes"]]


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        (
            "apparmor_restrict_unprivileged_userns",
            "1",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ],
)
def test_sysctls_of_other_distributions(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, remedy: str
) -> None:
    before = _machine.user_namespace_causes()
    real = _machine.read
    for content, expected in ((value, 1), (str(1 - int(value)), 0)):
        known = {f"/proc/sys/kernel/{name}": content}
        monkeypatch.setattr(
            _machine, "read", lambda path, known=known: known.get(path) or real(path)
        )
        more = [each for each in _machine.user_namespace_causes() if each not in before]
        assert len(more) == expected
        assert all(cause == f"sysctl kernel.{name} is {value}" for cause, _ in more)
        assert all(remedy in said for _, said in more)
        hint = _machine.user_namespace_remedy("clone", errno.EPERM)
        assert (remedy in hint) == bool(expected)


def test_a_filter_of_system_calls_and_an_old_kernel_are_causes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = _machine.user_namespace_causes()
    status = _machine.status
    monkeypatch.setattr(_machine, "status", lambda name: "2" if name == "Seccomp" else status(name))
    assert [*before, _machine.SECCOMP] == _machine.user_namespace_causes()
    monkeypatch.setattr(_machine, "status", status)
    monkeypatch.setattr(_machine, "kernel_is_older_than", lambda *_: True)
    (found,) = [each for each in _machine.user_namespace_causes() if each not in before]
    assert found == (f"the kernel is {os.uname().release}", "Linux 5.12 or newer")


def test_kernels_are_compared_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernel:
        release = "5.9.0-27-amd64"

    monkeypatch.setattr(os, "uname", Kernel)
    assert [_machine.kernel_is_older_than(*v) for v in ((5, 12), (5, 9), (4, 20))] == [1, 0, 0]


# ---- SANDBOXLIB_BACKEND ----------------------------------------------------------------------

_BACKEND = """
import os, warnings
import sandboxlib
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    try:
        print(sandboxlib.executor_for_platform().NAME)
        box = sandboxlib.Sandbox("/", filesystem_writable_paths="all", tmp="root")
        print(box.run(["true"]).executor)
        print(sandboxlib.run_sandbox("/", ["true"], network="isolated").executor)
    except sandboxlib.UnsupportedError as error:
        print(error)
for warning in seen:
    print(warning.category.__name__, warning.message)
"""


@pytest.mark.parametrize("backend", ["linux-user-chroot", *choose.EXECUTORS[1:]])
def test_the_variable_chooses(setuid_tool: SetuidTool, backend: str) -> None:
    said = python_on(setuid_tool, MACHINES["user"], _BACKEND, SANDBOXLIB_BACKEND=backend)
    assert said.split() == [backend.replace("-", "_")] * 3


def test_a_backend_that_does_not_work_is_not_replaced(setuid_tool: SetuidTool) -> None:
    said = python_on(setuid_tool, MACHINES["user"], _BACKEND, SANDBOXLIB_BACKEND="chroot")
    assert said.startswith("no executor works on this machine\n  chroot: ")
    assert "CAP_SYS_ADMIN" in said
    assert len(said.splitlines()) == 2


def test_a_backend_that_cannot_promise_is_not_replaced(
    setuid_tool: SetuidTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
import sandboxlib
for words in ({"no_new_privs": False}, {"user": "ranges"}, {"capabilities": ["net_admin"]}):
    try:
        print(sandboxlib.run_sandbox("/", ["true"], **words).executor)
    except sandboxlib.UnsupportedError as error:
        print(*str(error).splitlines()[1:])
"""
    backend = {"SANDBOXLIB_BACKEND": "bubblewrap"}
    privs, ranges, capability = python_on(
        setuid_tool, MACHINES["user"], script, **backend
    ).splitlines()
    assert privs == "  bubblewrap: no_new_privs=False: bwrap always sets it"
    assert ranges == "  bubblewrap: user='ranges': bwrap maps one id"
    assert capability == "  bubblewrap: capabilities=('net_admin',): the command is not root"


@pytest.mark.parametrize("backend", ["docker", "Chroot", "chroot ", "sandboxlib.chroot"])
def test_an_unknown_backend_is_warned_about_and_ignored(
    setuid_tool: SetuidTool, backend: str
) -> None:
    said = python_on(setuid_tool, MACHINES["user"], _BACKEND, SANDBOXLIB_BACKEND=backend)
    assert said.splitlines()[:3] == ["linux_user_chroot"] * 3
    told = said.splitlines()[3:]
    assert len(told) >= 3  # one for each choice that was made
    for line in told:
        assert line.startswith(f"UserWarning SANDBOXLIB_BACKEND is {backend!r}, none of chroot, ")


def test_an_empty_variable_is_none(setuid_tool: SetuidTool) -> None:
    said = python_on(setuid_tool, MACHINES["user"], _BACKEND, SANDBOXLIB_BACKEND="")
    assert said.split() == ["linux_user_chroot"] * 3


def test_executors_have_names() -> None:
    for name in choose.EXECUTORS:
        for word in (name, name.replace("_", "-")):
            assert sandboxlib.get_executor(word) is getattr(sandboxlib, name)
        assert str(name) == sandboxlib.get_executor(name).NAME
    for word in ("", "docker", "Chroot", "errors", "../chroot", "linux user chroot", "_ladder"):
        with pytest.raises(KeyError) as caught:
            sandboxlib.get_executor(word)
        assert caught.value.args == (word,)


# ---- what is remembered ----------------------------------------------------------------------


@needs_root
def test_a_choice_is_remembered_by_its_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    box = open_box("/")
    monkeypatch.setenv(choose.VARIABLE, "nonesuch")
    with pytest.warns(UserWarning, match="nonesuch"):
        assert box.run(["true"]).executor == "chroot"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a second choice would warn again
        assert box.run(["true"]).executor == "chroot"
    with pytest.warns(UserWarning, match="nonesuch"):
        open_box("/").run(["true"])


@needs_root
def test_a_choice_is_not_kept_when_the_variable_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    require(shutil.which("bwrap"), "there is no bwrap")
    box = open_box("/")
    for backend in ("chroot", "user-namespace", "bubblewrap", "chroot"):
        monkeypatch.setenv(choose.VARIABLE, backend)
        assert box.run(["true"]).executor == backend.replace("-", "_")
    monkeypatch.delenv(choose.VARIABLE)
    assert box.run(["true"]).executor == "chroot"


def test_a_choice_is_not_kept_by_a_child_that_gives_up_root(setuid_tool: SetuidTool) -> None:
    script = """
import os, sys, ctypes
from sandboxlib import Sandbox
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
box = open_box("/")
assert box.run(["id", "-u"])[:2] == (0, b"0\\n")
print(box.run(["true"]).executor, flush=True)
child = os.fork()
if child == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    result = box.run(["id", "-u"])
    print(result.executor, result.out, flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(box.run(["true"]).executor)
"""
    said = python_on(setuid_tool, MACHINES["root"], script).splitlines()
    assert said == ["chroot", "linux_user_chroot b'65534\\n'", "chroot"]


def test_a_child_that_gave_up_root_has_a_user_namespace_or_is_told_why(
    setuid_tool: SetuidTool,
) -> None:
    script = """
import os
from sandboxlib import user_namespace
child = os.fork()
if child == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    print(user_namespace.why_not(), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    said = python_on(setuid_tool, MACHINES["root"], script)
    assert said == "\n" or "PR_SET_DUMPABLE" in said


def test_a_trial_is_made_again_for_another_user(setuid_tool: SetuidTool) -> None:
    script = """
import os
from sandboxlib import chroot
print(chroot.why_not() == "")
os.seteuid(65534)
print("CAP_SYS_ADMIN" in chroot.why_not())
os.seteuid(0)
print(chroot.why_not() == "")
"""
    assert python_on(setuid_tool, MACHINES["root"], script).split() == ["True"] * 3


# A trial is made with so few descriptors left, in a child; and once more when they are back.
_TRANSIENT = """
import os, resource, sys
import sandboxlib
executor = sandboxlib.get_executor(sys.argv[1])
box = sandboxlib.Sandbox("/", filesystem_writable_paths="all", tmp="root")
questions = {"why_not": executor.why_not, "refusals": lambda: executor.refusals(box)}
ask = questions[sys.argv[2]]
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
import subprocess, _posixsubprocess, selectors  # importing takes descriptors as well
for limit in map(int, sys.argv[3:]):
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            said = repr(ask())
        except OSError as error:
            said = os.strerror(error.errno)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        print(f"{said}|{ask() or ''}", flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def after_too_few_descriptors(
    tool: SetuidTool, executor: str, question: str, *limits: int
) -> list[tuple[str, str]]:
    """For each limit what was said with it, and what was said when it was lifted."""
    machine = MACHINES["root" if executor == "chroot" else "user"]
    said = python_on(tool, machine, _TRANSIENT, executor, question, *map(str, limits))
    return [line.rpartition("|")[::2] for line in said.splitlines()]


@pytest.mark.parametrize("question", ["why_not", "refusals"])
@pytest.mark.parametrize("executor", ["chroot", "user_namespace", "bubblewrap"])
def test_too_few_descriptors_are_no_reason_for_ever(
    setuid_tool: SetuidTool, executor: str, question: str
) -> None:
    said = after_too_few_descriptors(setuid_tool, executor, question, *range(6, 18))
    assert [later for _, later in said] == [""] * 12, said
    assert any(first == os.strerror(errno.EMFILE) for first, _ in said)


def test_too_few_descriptors_are_no_reason_for_ever_for_the_tool(setuid_tool: SetuidTool) -> None:
    said = after_too_few_descriptors(setuid_tool, "linux_user_chroot", "why_not", *range(6, 18))
    assert [later for _, later in said] == [""] * 12, said


# ---- degrading -------------------------------------------------------------------------------

#: All but the tool, which does not work in a user namespace, whose mounts are locked.
NATIVE = ("chroot", "user_namespace", "bubblewrap")

_DEGRADE = """
import json, sys, warnings
import sandboxlib
executor = sandboxlib.get_executor(sys.argv[1]) if sys.argv[1] else sandboxlib
config = json.loads(sys.argv[2])
kept = json.loads(sys.argv[2])
told = {}
for warn in (True, False):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        degraded = executor.degrade_config_for_capabilities(config, warn=warn)
    told[warn] = [[w.category.__name__, str(w.message), w.filename] for w in seen]
    assert config == kept
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    assert executor.degrade_config_for_capabilities(config) == degraded
assert len(seen) == len(told[True])
print(json.dumps([degraded, told[True], told[False], executor.maximum_possible_isolation()]))
"""

_UNASKED = """
import os, sys
import sandboxlib
executor = sandboxlib.get_executor(sys.argv[1]) if sys.argv[1] else sandboxlib
mark = sys.argv[2] + "/mark"
script = ["sh", "-c", 'echo > "$0"', mark]
before = os.listdir("/proc/self/fd")
for words in ({sys.argv[3]: "isolated"}, {}):
    words = {**dict.fromkeys(("network", "mounts", "processes", "ipc"), "undefined"), **words}
    try:
        result = executor.run_sandbox("/", script, **words)
        print(result.exit, result.isolation[sys.argv[3]], os.path.exists(mark))
    except sandboxlib.SandboxError as error:
        print(type(error).__name__, os.path.exists(mark))
"""

LIMITS = {
    "network": "net",
    "mounts": "mnt",
    "processes": "pid",
    "ipc": "ipc",
}


def without(kind: str) -> Machine:
    """Root, but for one kind of isolation."""
    return Machine("", "", before=limited(LIMITS[kind]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("executor", ["", *NATIVE])
def test_degrading_takes_away_what_is_missing_and_says_so(
    setuid_tool: SetuidTool, executor: str, kind: str
) -> None:
    config = {**dict.fromkeys(KINDS, "isolated"), "cwd": "/tmp", "hostname": None}
    script = (_DEGRADE, executor, json.dumps(config))
    degraded, told, silent, possible = json.loads(python_on(setuid_tool, without(kind), *script))
    missing = set(KINDS) if (executor, kind) == ("bubblewrap", "mounts") else {kind}
    assert possible.pop("seccomp") in ("builds", "default", "none")
    assert possible == {name: "undefined" if name in missing else "isolated" for name in KINDS}
    assert degraded == {**config, **dict.fromkeys(missing, "undefined")}
    assert silent == []
    assert len(told) == len(missing)
    for category, text, filename in told:
        assert category == "UserWarning"
        assert executor or filename == "<string>"  # who called, not a file of ours
        assert text.startswith(f"{executor or 'sandboxlib'} cannot isolate ")
        assert any(name in text for name in missing)


@pytest.mark.parametrize("executor", NATIVE)
def test_the_warning_of_an_executor_names_its_caller(
    setuid_tool: SetuidTool, executor: str
) -> None:
    script = (_DEGRADE, executor, '{"network": "isolated"}')
    _, told, _, _ = json.loads(python_on(setuid_tool, without("network"), *script))
    assert [filename for _, _, filename in told] == ["<string>"]


def test_the_warning_about_the_variable_names_its_caller(setuid_tool: SetuidTool) -> None:
    script = """
import warnings
import sandboxlib
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    sandboxlib.executor_for_platform()
print(seen[0].filename)
"""
    backend = {"SANDBOXLIB_BACKEND": "nonesuch"}
    assert python_on(setuid_tool, MACHINES["user"], script, **backend) == "<string>\n"


@pytest.mark.parametrize("executor", ["", *NATIVE])
def test_degrading_gives_up_mounts_where_there_are_none(
    setuid_tool: SetuidTool, executor: str
) -> None:
    config = {
        "mounts": "isolated",
        "network": "undefined",
        "filesystem_writable_paths": ["/tmp"],
        "extra_mounts": [["x", "/dev/shm", "tmpfs"]],
    }
    script = (_DEGRADE, executor, json.dumps(config))
    degraded, told, silent, _ = json.loads(python_on(setuid_tool, without("mounts"), *script))
    assert degraded.pop("extra_mounts") == []
    assert degraded == {
        "mounts": "undefined",
        "network": "undefined",
        "filesystem_writable_paths": "all",
    }
    assert (len(told), silent) == (3, [])
    for config in ({}, {"filesystem_writable_paths": "all", "extra_mounts": []}):
        script = (_DEGRADE, executor, json.dumps(config))
        degraded, told, _, _ = json.loads(python_on(setuid_tool, without("mounts"), *script))
        assert (degraded, told) == (config, [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("executor", ["", *choose.EXECUTORS])
def test_nothing_is_degraded_unasked(setuid_tool: SetuidTool, executor: str, kind: str) -> None:
    place = setuid_tool.base / "place"
    place.mkdir(exist_ok=True)
    (place / "mark").unlink(missing_ok=True)
    machine = without(kind)
    asked, unasked = python_on(
        setuid_tool, machine, _UNASKED, executor, str(place), kind
    ).splitlines()
    assert asked in ("UnsupportedError False", "SetupError False")
    assert executor or asked == "UnsupportedError False"
    if executor in ("", "chroot", "user_namespace"):
        assert unasked == "0 undefined True"


@needs_root
def test_the_tool_says_what_it_can_isolate_here(
    setuid_tool: SetuidTool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A machine without network namespaces, on which the tool itself works, takes another kernel.
    fake = tmp_path / "linux-user-chroot"
    real = setuid_tool.base / "2015.1"
    refusal = "echo 'clone: No space left on device' >&2; exit 1"
    fake.write_text(
        f'#!/bin/sh\ncase "$*" in *--unshare-net*) {refusal};; esac\nexec {real} "$@"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    executor = sandboxlib.linux_user_chroot
    # pytest's directory is below /tmp, from which no tool is taken.
    monkeypatch.setattr(executor.tools, "_walk", lambda path: (path, ""))
    assert executor.why_not() == ""
    assert executor.refusals(open_box("/", network="isolated", policy=Policy(capabilities="all")))
    assert executor.maximum_possible_isolation()["network"] == "undefined"


@pytest.mark.parametrize("kind", KINDS)
def test_the_doctor_names_the_limit_that_forbids_one_kind(
    setuid_tool: SetuidTool, kind: str
) -> None:
    script = "import json, sandboxlib; print(json.dumps(sandboxlib.doctor()))"
    found = json.loads(python_on(setuid_tool, without(kind), script))
    for executor in found:
        if executor["name"] in ("chroot", "user_namespace"):
            assert any(f"max_{LIMITS[kind]}_namespaces" in cause for cause, _ in executor["causes"])


def test_a_limit_on_namespaces_is_told_by_bwrap_too(setuid_tool: SetuidTool) -> None:
    script = """
import errno
from sandboxlib import SetupError, bubblewrap
try:
    bubblewrap.run_sandbox("/", ["true"])
except SetupError as error:
    assert "max_*_namespaces" in str(error)
    print(errno.errorcode[error.errno])
"""
    assert python_on(setuid_tool, without("processes"), script) == "ENOSPC\n"
