# SPDX-License-Identifier: Apache-2.0
"""A Command, or its arguments, in every call that runs one."""

from __future__ import annotations

import asyncio
import os
import pickle
from pathlib import Path

import pytest
from lib.boxes import open_box
from lib.commands import each_call

from sandboxlib import Command, CommandFailed, Sandbox

CALLS = sorted(each_call(open_box("/")))


@pytest.mark.parametrize("call", CALLS)
def test_every_call_takes_a_command(call: str, shared_rootfs: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the executor chroot takes root")
    with Sandbox(shared_rootfs) as box:
        run = each_call(box)[call]
        script = ["sh", "-c", "echo $PWD $A; exit 3"]
        command = Command(script, "/tmp", {"A": "b"})
        if "map" in call:
            for make in (
                lambda: run(command),
                lambda: run(script, cwd="/tmp", extra_env={"A": "b"}),
            ):
                with pytest.raises(CommandFailed) as raised:
                    make()
                assert raised.value.command == command
                assert raised.value.result.out == b"/tmp b\n"
            return
        results = [run(command), run(script, cwd="/tmp", extra_env={"A": "b"})]
    if call == "start_async":  # the method of an AsyncProcess is a coroutine function
        results = [asyncio.run(result) for result in results]
    for result in results:
        assert result.exit == 3
        assert result.command == command
        assert not result.ok
        if "start" not in call:
            assert result.out == result.stdout == b"/tmp b\n"


def test_check_raises_what_check_of_the_result_does(shared_rootfs: Path) -> None:
    with Sandbox(shared_rootfs) as box:
        assert box.run(["true"], check=True).ok
        assert asyncio.run(box.run_async(["true"], check=True)).ok
        for call in (
            lambda: box.run(["false"], check=True),
            lambda: asyncio.run(box.run_async(["false"], check=True)),
            lambda: box.run(["false"]).check(),
        ):
            with pytest.raises(CommandFailed, match=r"\['false'\] ended with exit status 1"):
                call()
        with pytest.raises(CommandFailed, match=r"ended with exit status -15 \(SIGTERM\)"):
            box.run(["sh", "-c", "kill $$"], check=True)


def test_a_result_is_pickled_whatever_its_command_holds(shared_rootfs: Path) -> None:
    with Sandbox(shared_rootfs) as box:
        plain = box.run(["echo", "x"])
        assert pickle.loads(pickle.dumps(plain)).command == plain.command
        held = box.run(["false"], stdout=lambda data: None)
        assert pickle.loads(pickle.dumps(held)).command is None
        with pytest.raises(CommandFailed) as raised:
            held.check()
        assert pickle.loads(pickle.dumps(raised.value)).result == held
        options = {"stdout": print, "on_failure": "continue"}
        (error,) = box.map([["/none"]], **options)  # type: ignore[call-overload]
        assert pickle.loads(pickle.dumps(error)).step == "exec"
        assert error.command.argv == ("/none",)
