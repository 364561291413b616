# SPDX-License-Identifier: Apache-2.0
"""What a site gives, what an Action may ask for, and what is refused."""

from __future__ import annotations

import os
import platform
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib.machine import require

from sandboxlib import Limits, Mount, Policy, SpecError, SpecTypeError, User


@pytest.mark.parametrize(
    "pair",
    [
        *(("OSFamily", "windows"), ("ISA", "sparc"), ("unixUID", "-1"), ("unixUID", "a")),
        *(("network", "on"), ("network", "maybe"), ("sandboxlib", "2"), ("container-image", "x")),
        *(("chrootRootDigest", "x"), ("Pool", "large")),
    ],
    ids="=".join,
)
def test_a_property_that_cannot_be_kept_is_refused(place: Any, pair: tuple[str, str]) -> None:
    outcome = place.run("true", platform=[pair])
    assert outcome.code == "FAILED_PRECONDITION"
    assert pair[0] in outcome.message


def test_properties_that_hold_change_nothing(make_place: Callable[..., Any]) -> None:
    place = make_place(properties={"Pool": ["large", "small"]})
    pairs = [("OSFamily", "linux"), ("ISA", platform.machine().replace("_", "-"))]
    assert place.run("true", platform=[*pairs, ("Pool", "small")]).code == "OK"
    assert place.run("true", platform=[("Pool", "huge")]).code == "FAILED_PRECONDITION"


def test_a_32_bit_machine_is_a_personality(place: Any) -> None:
    require(platform.machine() == "x86_64", "it is another machine")
    outcome = place.run("uname -m", platform=[("ISA", "x86-32")])
    assert outcome.result.stdout_raw == b"i686\n"


def test_ids_are_those_that_the_action_asks_for(place: Any) -> None:
    pairs = [("unixUID", "1234"), ("unixGID", "1235")]
    outcome = place.run(
        "id -u; id -g; touch in.txt && stat -c %u in.txt", [], {"in.txt": b""}, platform=pairs
    )
    assert outcome.result.stdout_raw == b"1234\n1235\n1234\n"


def test_a_site_says_which_ids_there_are(make_place: Callable[..., Any]) -> None:
    some = make_place(uids=[1000])
    assert some.run("id -u", platform=[("unixUID", "1000")]).result.stdout_raw == b"1000\n"
    assert some.run("id -u", platform=[("unixUID", "0")]).code == "FAILED_PRECONDITION"
    own = make_place(options={"user": User(1000)})
    assert own.run("id -u").result.stdout_raw == b"1000\n"
    assert own.run("id -u", platform=[("unixUID", "0")]).code == "FAILED_PRECONDITION"


def test_there_is_no_network_unless_the_site_and_the_action_say_so(
    make_place: Callable[..., Any],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # the kernel accepts for it
        closed = f"nc -w 2 127.0.0.1 {server.getsockname()[1]} </dev/null || echo closed"
        assert make_place().run(closed).result.stdout_raw == b"closed\n"
        for pairs, expected in (
            ([], b"closed\n"),
            ([("network", "off")], b"closed\n"),
            ([("network", "on")], b""),
        ):
            accepts = threading.Thread(target=lambda: server.accept()[0].close(), daemon=True)
            if not expected:
                accepts.start()
            outcome = make_place(allow_network=True).run(closed, platform=pairs)
            assert outcome.result.stdout_raw == expected, (pairs, outcome)


def test_options_of_the_site_hold_for_all_actions(make_place: Callable[..., Any]) -> None:
    place = make_place(options={"limits": Limits(open_files=33), "hostname": "here"}, name="w1")
    outcome = place.run("ulimit -n; uname -n")
    assert outcome.result.stdout_raw == b"33\nhere\n"
    assert outcome.result.execution_metadata.worker == "w1"


def test_a_caller_may_add_mounts_of_its_own(place: Any, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"of the caller")
    action = place.blobs.action(["/bin/cat", "/mnt/f"], place.root({"mnt": {}}))
    mount = Mount.bind(tmp_path, "/mnt", read_only=True)
    outcome = place.executor.execute(action, bind_mounts=[mount])
    assert outcome.result.stdout_raw == b"of the caller"


def test_a_tmp_of_the_input_root_is_seen(place: Any) -> None:
    assert place.run("cat /tmp/f", [], {"tmp": {"f": b"f"}}).result.stdout_raw == b"f"
    outcome = place.run("echo x > /tmp/out", ["tmp/out"])
    assert place.file(outcome, "tmp/out") == b"x\n"


@pytest.mark.parametrize(
    "wrong",
    [
        *({"root": "relative"}, {"directory": "build"}, {"timeout": -1}, {"max_output": "lots"}),
        *({"options": {"store": None}}, {"timeout": 10, "max_timeout": 5}, {"unknown": 1}),
        *({"properties": {"Pool": "large"}}, {"options": []}, {"root": "/", "directory": "/"}),
    ],
    ids=repr,
)
def test_a_site_that_makes_no_sense_is_an_error(wrong: Any) -> None:
    from sandboxlib._actions.site import Site

    with pytest.raises((SpecError, SpecTypeError)):
        Site(**wrong)


# ---- what the site allows an Action of ours ------------------------------------------------------

_ISOLATED = dict.fromkeys(("network", "mounts", "processes", "ipc"), "isolated")


@pytest.mark.parametrize(
    "asked",
    [
        *({"network": "undefined"}, {"mounts": "undefined"}, {"processes": "undefined"}),
        *({"ipc": "undefined"}, {"resolv_conf": True}, {"devices": "root"}),
        *({"devices": ("/dev/kvm",)}, {"extra_mounts": [Mount.bind("/etc", "/mnt")]}),
        *({"policy": Policy(seccomp="none")}, {"policy": Policy(capabilities="all")}),
        *({"policy": Policy(no_new_privs=False)}, {"policy": Policy(nesting=True)}),
        {"user": "root"},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_a_client_cannot_ask_for_less_isolation_than_the_site_has(asked: Any) -> None:
    from sandboxlib._actions.clamp import clamped
    from sandboxlib._actions.outcome import Refused
    from sandboxlib._actions.site import Site

    site = Site(options={"user": User(1000)})
    with pytest.raises(Refused) as refused:
        clamped({**_ISOLATED, "user": User(1000), **asked}, None, site)
    assert refused.value.code == "FAILED_PRECONDITION"


def test_a_client_may_ask_for_more_isolation() -> None:
    from sandboxlib._actions.clamp import clamped
    from sandboxlib._actions.site import Site

    asked = {**_ISOLATED, "policy": Policy(capabilities="none"), "hostname": "h", "tmp": None}
    assert clamped(asked, None, Site())["policy"] == Policy(capabilities="none")
    assert "tmp" not in clamped(asked, None, Site())


def test_of_the_limits_of_site_and_client_the_stricter_ones_count() -> None:
    from sandboxlib._actions.clamp import clamped
    from sandboxlib._actions.outcome import Refused
    from sandboxlib._actions.site import Site

    site = Site(options={"limits": Limits(open_files=100, nice=5, cpu_time=10)})
    asked = {"open_files": 50, "nice": 1, "cpu_time": 20, "core": 0}
    limits = clamped(dict(_ISOLATED), asked, site)["limits"]
    assert limits == Limits(open_files=50, nice=5, cpu_time=10, core=0)
    assert clamped(dict(_ISOLATED), None, site)["limits"] == site.options["limits"]
    for wrong in ({"cgroup": True}, {"oom_score_adj": -5}, {"nice": -5}):
        with pytest.raises(Refused):
            clamped(dict(_ISOLATED), wrong, site)
    with pytest.raises(SpecError):
        clamped(dict(_ISOLATED), {"unknown": 1}, site)
    assert os.uname().machine
