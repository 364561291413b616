# SPDX-License-Identifier: Apache-2.0
"""Programs that only type checkers read (tests/unit/test_types.py): what the calls return, and what
they do not take. A line with `type: ignore` has to be an error, as the checkers report one that is
not needed.
"""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from subprocess import CompletedProcess, run
from typing import Any

from typing_extensions import assert_type

import sandboxlib
from sandboxlib import (
    CAPTURE,
    STDOUT,
    Command,
    CommandFailed,
    Limits,
    Lines,
    Mount,
    Policy,
    Result,
    Runner,
    Sandbox,
    SandboxError,
    SandboxExecutor,
    Tee,
    User,
)

# ---- values ----------------------------------------------------------------------------------

box = Sandbox(
    Path("/"),
    network="undefined",
    user=1000,
    tmp="root",
    devices=(f"/dev/{name}" for name in ("kvm", "fuse")),
    extra_mounts=(Mount.bind(path, path) for path in (Path("/a"), "/b")),
    filesystem_writable_paths={"/x": 1}.keys(),
    policy=Policy(capabilities={"chown"}, seccomp=Path("profile.json")),
    limits=Limits(memory="1G", cpuset=range(2), scheduler="idle") | None,
)
assert_type(box.replace(network="isolated", user=User(5, groups=[6])), Sandbox)
assert_type(Command("x").replace(argv=["y"], timeout=5), Command)

Sandbox("/", network="none")  # type: ignore[arg-type]
Sandbox("/", netwrk="isolated")  # type: ignore[arg-type]
Sandbox("/", user="nobody")  # type: ignore[arg-type]
Policy(seccomp="strict")  # type: ignore[arg-type]
Limits(scheduler="fast")  # type: ignore[arg-type]
Command(["x"], on_overflow="stop")  # type: ignore[arg-type]
Command(["x"], pty_stderr="file", executable=b"y", env={b"A": b"b"})  # type: ignore[arg-type]
Command("x").replace(timout=5)  # type: ignore[call-arg]

# ---- calls -----------------------------------------------------------------------------------

assert_type(box.run(["cc", b"-c", Path("a.c")]), Result)
assert_type(box.run("true", check=True, fresh=True, timeout=5, pass_fds={3}), Result)
box.run("x", stdout=Lines(print), stderr=STDOUT)
box.run("x", stdout=Tee(1), env={"A": "b"})
box.run("x", timout=5)  # type: ignore[call-arg]
for each in box.map([["true"], Command("true")]):
    assert_type(each, Result)
for one in box.map((["true"] for _ in "ab"), on_failure="continue", ordered=False, cwd="/src"):
    assert_type(one, Result | SandboxError)
    print(one.exit)  # type: ignore[union-attr]
box.map([["true"]], on_failure="go on")  # type: ignore[call-overload]
for each in sandboxlib.map([(box, ["true"])], jobs=2, progress=lambda done, result: None):
    assert_type(each, Result)
for one in sandboxlib.map([(box, ["true"])], on_failure="continue"):
    assert_type(one, Result | SandboxError)
with box.start(["cat"], stdin=CAPTURE) as process:
    process.stdin.write(b"x")
    for line in process.stdout:
        assert_type(line, bytes)
    assert_type(process.wait(timeout=5), int)
    assert_type(process.result(), Result)
with box.session() as session:
    assert_type(session.run(["true"], check=True, timeout=5), Result)
    for each in session.map([["true"]]):
        assert_type(each, Result)


async def in_a_loop() -> None:
    assert_type(await box.run_async(["true"], check=True), Result)
    async with box.start_async(["cat"], stdin=CAPTURE) as process:
        process.stdin.write(b"x")
        async for line in process.stdout:
            assert_type(line, bytes)
        assert_type(await process.wait(), int)


# ---- results ---------------------------------------------------------------------------------

try:
    result = box.run("x").check()
    assert_type(result, Result)
    assert_type(result.exit, int)
    assert_type(result.out, bytes | None)
    assert_type(result.stdout.split(), list[bytes])
    exit, out, err = result
    assert_type(exit, int)
except CommandFailed as error:
    assert_type(error.result, Result)


async def converse() -> None:
    async with box.start_async(["cat"], stdin=CAPTURE, limit=1 << 20) as process:
        process.stdin.write(b"x")
        await process.stdin.drain()
        async for line in process.stdout:
            assert_type(line, bytes)
        assert_type(await process.wait(), int)
        assert_type(await process.communicate(), tuple[bytes | None, bytes | None])
        assert_type(await process.result(), Result)
    assert_type(process.returncode, int | None)
    assert_type(await box.run_async(["true"]), Result)


# ---- runners ---------------------------------------------------------------------------------


def build(runner: Runner) -> None:
    assert_type(runner.run(["x"], cwd="/src"), Result)
    for each in runner.map(Command(["x"]) for _ in "ab"):
        assert_type(each, Result)
    with SandboxExecutor(runner) as pool:
        assert_type(pool.submit(["true"], cwd="/", check=True), Future[Result])
        assert_type(pool.submit(run, ["true"]), Future[CompletedProcess[Any]])
        for each in pool.map([["true"]]):
            assert_type(each, Result)
        pool.submit(["true"], timout=5)  # type: ignore[call-overload]


build(box)
build(session)
with sandboxlib.Server("grpc://cache:8980", token=Path("token")) as server:
    cached = sandboxlib.Cached(box, server, write=True, assume=["layers"], unreachable="run")
build(cached)
assert_type(cached.run(["true"], do_not_cache=True).cached, bool)
for maybe in cached.map([["true"]], 2, on_failure="continue"):
    assert_type(maybe, Result | SandboxError)
sandboxlib.Cached(box, "grpc://cache:8980")  # type: ignore[arg-type]
sandboxlib.Cached(box, server, unreachable="wait")  # type: ignore[arg-type]
cached.start(["true"])  # type: ignore[attr-defined]

# ---- run_sandbox, in both forms --------------------------------------------------------------

assert_type(sandboxlib.run_sandbox("/", ["true"], network="undefined", timeout=5), Result)
assert_type(sandboxlib.chroot.run_sandbox(Path("/"), "true", "/src", {"A": "b"}), Result)
assert_type(sandboxlib.run_sandbox(["true"], filesystem_root="/", cwd="/"), Result)
assert_type(sandboxlib.run_sandbox("true", filesystem_root="/"), Result)
assert_type(sandboxlib.run_sandbox(["true"], "/", {"A": "b"}, "/", "all", "undefined"), Result)
earlier = sandboxlib.degrade_config_for_capabilities({"network": "isolated"})
assert_type(sandboxlib.run_sandbox(["true"], filesystem_root="/", **earlier), Result)
assert_type(sandboxlib.run_sandbox_with_redirection("/", ["true"], stdout=1), int)
sandboxlib.run_sandbox("/", "true", netwrk="isolated")  # type: ignore[call-overload]

with sandboxlib.load.open_image("x.tar") as (root, image):
    sandboxlib.run_sandbox(
        root, image.argv, image.cwd, env=image.env, user=image.user, network="undefined"
    )
