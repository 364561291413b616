# SPDX-License-Identifier: Apache-2.0
"""Every call that runs a command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import sandboxlib
from sandboxlib import Sandbox, SandboxExecutor


def each_call(box: Sandbox) -> dict[str, Callable[..., Any]]:
    """Every call that runs a command, by the name that its errors have."""

    def entered(make: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            async def enter() -> Any:
                process = make(*args, **options)
                async with process:
                    await process.communicate()
                return process.result()

            return asyncio.run(enter())

        return call

    def finished(*args: Any, **options: Any) -> Any:
        with box.start(*args, **options) as process:
            process.communicate()
        return process.result()

    def submitted(*args: Any, **options: Any) -> Any:
        with SandboxExecutor(box, 1) as pool:
            return pool.submit(*args, **options).result()

    return {
        "run": box.run,
        "run_async": lambda *w, **o: asyncio.run(box.run_async(*w, **o)),
        "start": finished,
        "start_async": entered(box.start_async),
        "map": lambda argv, **o: next(box.map([argv], **o)),
        "map of the module": lambda argv, **o: next(sandboxlib.map([(box, argv)], **o)),
        "submit": submitted,
        "run_in": lambda argv, **o: sandboxlib.chroot.run_in(box, argv, **o),
        "run_sandbox": lambda argv, **o: sandboxlib.run_sandbox(box.root, argv, **o),
        "run_sandbox of chroot": lambda a, **o: sandboxlib.chroot.run_sandbox(box.root, a, **o),
        "run_sandbox_async": lambda argv, **o: asyncio.run(
            sandboxlib.run_sandbox_async(box.root, argv, **o)
        ),
    }
