# SPDX-License-Identifier: Apache-2.0
"""Programs of the host that sandboxlib starts: where they may lie, how long they may take, and what
they are believed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lib.machine import needs_root, python, require

import sandboxlib

PACKAGE = Path(sandboxlib.__file__).resolve().parent.parent
NOBODY = 65534  # newuidmap serves users who have a name


def in_private_mounts(setup: str, script: str, **env: str) -> Any:
    """Run a Python script in a mount namespace with an empty tmpfs on /opt; return its JSON output.

    sh runs `setup` there first.
    """
    for program in ("unshare", "setpriv", "mount"):
        require(shutil.which(program), f"there is no {program}")
    private = f'mount -t tmpfs -o mode=755 none /opt\n{setup}\nexec "$@"'
    argv = ["unshare", "-m", "--propagation", "private", "sh", "-ec", private, "sh", *python()]
    settings = {**os.environ, "PYTHONPATH": str(PACKAGE), **env}
    done = subprocess.run(
        [*argv, "-c", script],
        capture_output=True,
        text=True,
        env=settings,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---- where they may lie ------------------------------------------------------------------------

FIND = """
import json, os, sys
from sandboxlib import UnsupportedError
from sandboxlib._host.tools import trusted_tool
found = {}
for name, path in json.loads(os.environ["PATHS"]).items():
    os.environ["PATH"] = path
    try:
        found[name] = trusted_tool("tool", ["/opt/usual"])
    except UnsupportedError as error:
        found[name] = "refused: " + str(error)
print(json.dumps(found))
"""


@needs_root
def test_a_tool_is_started_only_where_nobody_else_can_write() -> None:
    setup = """
    cd /opt; mkdir -p usual good theirs open open/below sticky/below group links tmp/below
    for d in usual good theirs open/below sticky/below group tmp/below; do
        printf '#!/bin/sh\\n' > $d/tool; chmod 755 $d/tool
    done
    chown 65534 theirs; chmod 777 open; chmod 1775 sticky; chmod 775 group; chmod 1777 tmp
    ln -s /opt/good direct; ln -s /opt/open/link links/entry; ln -s ../good open/link
    ln -s ../good/tool links/tool; mkdir foreign file; ln -s /opt/good/tool foreign/tool
    chown -h 65534 foreign/tool; cp good/tool file; chown 65534 file/tool
    mkdir written; cp good/tool written; chmod 757 written/tool
    mkdir loop; ln -s tool loop/tool; cd /opt/theirs
    """
    paths = {
        **{"absolute": "/opt/good", "by a link": "/opt/direct", "a link to it": "/opt/links"},
        **{"empty entries": ":/opt/good:", "relative entries": ".:theirs:/opt/good"},
        **{
            "nowhere": "/opt/none",
            "no PATH": "",
            "a loop": "/opt/loop",
            "sticky group": "/opt/sticky/below",
        },
        **{"the directory's owner": "/opt/theirs", "a directory above": "/opt/open/below"},
        **{"a sticky directory for all": "/opt/tmp/below", "a group": "/opt/group:/opt/good"},
        **{"a link on the way": "/opt/links/entry", "the link's owner": "/opt/foreign"},
        **{"the file's owner": "/opt/file", "the file's mode": "/opt/written"},
    }
    found = in_private_mounts(setup, FIND, PATHS=json.dumps(paths))
    for name in ("absolute", "by a link", "a link to it", "empty entries", "relative entries"):
        assert found.pop(name) == "/opt/good/tool", name
    assert found.pop("sticky group") == "/opt/sticky/below/tool"
    for name in ("nowhere", "no PATH", "a loop"):
        assert found.pop(name) == "/opt/usual/tool", name
    said = {
        "the directory's owner": "/opt/theirs belongs to uid 65534",
        "a directory above": "/opt/open can be written by others (mode 0777)",
        "a sticky directory for all": "/opt/tmp can be written by others (mode 1777)",
        "a group": "/opt/group can be written by others (mode 0775)",
        "a link on the way": "/opt/open can be written by others (mode 0777)",
        "the link's owner": "/opt/foreign/tool belongs to uid 65534",
        "the file's owner": "/opt/file/tool belongs to uid 65534",
        "the file's mode": "/opt/written/tool can be written by others (mode 0757)",
    }
    assert found.keys() == said.keys()
    for name, text in said.items():
        assert found[name].startswith("refused: "), found[name]
        assert text in found[name]


@needs_root
def test_a_tool_of_the_callers_own_is_fine() -> None:
    setup = f"""
    mkdir /opt/mine; printf '#!/bin/sh\\n' > /opt/mine/tool; chmod 755 /opt/mine/tool
    chown -R {NOBODY} /opt/mine
    set -- setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups "$@"
    """
    paths = json.dumps({"own": "/opt/mine"})
    assert in_private_mounts(setup, FIND, PATHS=paths) == {"own": "/opt/mine/tool"}


# ---- newuidmap and newgidmap -------------------------------------------------------------------

RANGES = """
import json, os, signal, sys, threading, time
import sandboxlib
from sandboxlib import SandboxError
from sandboxlib._runs import id_maps as _mapper
from sandboxlib._host import machine as _machine
mode = json.loads(os.environ["MODE"])
if mode.get("sigchld"):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if mode.get("names"):  # a name service that does not answer
    _mapper.ranges = lambda kind: time.sleep(1000)
if mode.get("breaks"):
    def ranges(kind):
        raise ValueError("not a number")
    _mapper.ranges = ranges
if "longest" in mode:
    _mapper.LONGEST = mode["longest"]
os.environ.update({"LD_PRELOAD": "", "EVIL": "1", "MODE": mode.get("tool", "")})
box = sandboxlib.Sandbox("/", user="ranges")
began = time.monotonic()
try:
    words = {"cwd": "/", "timeout": mode.get("timeout")}
    result = sandboxlib.user_namespace.run_in(box, mode["command"], **words)
    said = [result.exit, result.out.decode()]
except SandboxError as error:
    said = [type(error).__name__, error.errno, error.step, str(error)]
took = time.monotonic() - began
with open(f"/proc/self/task/{os.getpid()}/children") as file:
    children = file.read().split()
print(json.dumps([said, took, children]))
"""
TOOL = """#!/bin/sh
env > /opt/env.$$
kind=$(basename "$0")
case $(cat /opt/how) in
hang) exec sleep 100 ;;
fail) echo "$kind: no such range" >&2; exit 1 ;;
lie) exit 0 ;;
esac
exec /usr/bin/$kind "$@"
"""


def map_ranges(how: str, **mode: Any) -> Any:
    """The outcome of a run with user='ranges' if newuidmap and newgidmap do what `how` says."""
    require(shutil.which("newuidmap"), "there is no newuidmap (apt: uidmap)")
    setup = f"""
    echo {NOBODY}:2000000:65536 > /opt/sub; chmod 644 /opt/sub; chmod 1777 /opt
    mount --bind /opt/sub /etc/subuid; mount --bind /opt/sub /etc/subgid
    mkdir /opt/bin; cat > /opt/bin/newuidmap <<'END'\n{TOOL}END
    cp /opt/bin/newuidmap /opt/bin/newgidmap; chmod 755 /opt/bin/*; echo {how} > /opt/how
    mount --bind /opt/bin /usr/local/sbin; export PATH=/usr/local/sbin:/usr/bin:/bin
    set -- setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups "$@"
    """
    words = {"command": ["cat", "/proc/self/uid_map"], **mode}
    return in_private_mounts(setup, RANGES, MODE=json.dumps(words))


@needs_root
def test_ranges_are_mapped_by_tools_with_a_clean_environment() -> None:
    said, _, _ = map_ranges("work")
    assert said[0] == 0, said
    lines = [line.split() for line in said[1].splitlines()]
    assert lines == [["0", str(NOBODY), "1"], ["1", "2000000", "65536"]]
    command = ["sh", "-c", "cat /opt/env.*"]
    said, _, _ = map_ranges("work", command=command, timeout=60)
    names = {line.partition("=")[0] for line in said[1].splitlines()}
    assert names <= {"PATH", "PWD", "SHLVL", "_", "OLDPWD"}


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("timeout", [0.2, None])
def test_a_mapping_tool_that_hangs_is_ended_in_time(timeout: float | None) -> None:
    said, took, children = map_ranges("hang", timeout=timeout, longest=1)
    assert said[:3] == ["SetupError", 110, "ids"]
    assert took < 30
    assert children == []


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("timeout", [0.2, None])
def test_a_name_service_that_hangs_ends_in_time(timeout: float | None) -> None:
    said, took, children = map_ranges("work", timeout=timeout, longest=1, names=True)
    assert said[:3] == ["SetupError", 110, "ids"]
    assert took < 30
    assert children == []


@needs_root
@pytest.mark.parametrize("sigchld", [False, True])
@pytest.mark.parametrize("how", ["fail", "lie"])
def test_a_mapping_tool_is_believed_by_the_map(how: str, sigchld: bool) -> None:
    said, _, children = map_ranges(how, sigchld=sigchld, timeout=60)
    assert said[:3] == ["SetupDenied", 1, "ids"]
    assert ("no such range" in said[3]) == (how == "fail")
    assert children == []


@needs_root
def test_whatever_breaks_while_ids_are_mapped_is_a_setup_error() -> None:
    said, _, children = map_ranges("work", breaks=True, timeout=60)
    assert said[:3] == ["SetupError", 5, "ids"]
    assert "not a number" in said[3]
    assert children == []
