# SPDX-License-Identifier: Apache-2.0
"""What every executor shares: from the caller's words to a Result."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from time import monotonic

from . import _plan, _process, errors
from .result import Result
from .sandbox import Mount, Sandbox, absolute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .sandbox import Command, Path, Stream

ISOLATED = {
    "network": "isolated",
    "mounts": "isolated",
    "processes": "isolated",
    "ipc": "isolated",
}


def run_native(
    executor: str,
    box: Sandbox,
    command: Command,
    cwd: Path | None,
    extra_env: Mapping[str, str] | None,
    stdin: Stream | bytes,
    stdout: Stream,
    stderr: Stream,
    timeout: float | None,
) -> Result:
    """Runs a command through the C core."""
    start = monotonic()
    if timeout is not None:
        _check_timeout(timeout)
    if extra_env is not None and not isinstance(extra_env, (dict, Mapping)):
        raise errors.SpecTypeError("extra_env is not a mapping")
    if cwd is None:
        cwd = absolute(".") if box.root == "/" else "/"
    job = _plan.Job(command, cwd, extra_env)
    plan = _plan.plan_for(box)
    exit, out, err, timed_out = _process.run(plan, job, stdin, stdout, stderr, timeout)
    return Result(exit, out, err, timed_out, monotonic() - start, executor, dict(plan.isolation))


def _check_timeout(timeout: object) -> None:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise errors.SpecTypeError(f"timeout is not a number of seconds: {timeout!r}")
    if not 0 <= timeout < 1e9:
        raise errors.SpecError(f"timeout has to be from 0 to 1e9 seconds: {timeout!r}")


_cached = functools.lru_cache(maxsize=64, typed=True)(Sandbox)


def sandbox_for(root: Path, options: dict[str, Any]) -> Sandbox:
    """The Sandbox of a one-shot call; the same words give the same one, compiled once.

    What holds a relative path is made anew each time: it changes with the caller's directory.
    """
    words = {name: tuple(v) if type(v) is list else v for name, v in options.items()}
    mounts = words.get("extra_mounts") or ()
    absolute = isinstance(root, str) and root.startswith("/")
    if not absolute or type(mounts) is not tuple or not all(type(m) is Mount for m in mounts):
        return Sandbox(root, **options)
    try:
        return _cached(root, **words)  # type: ignore[arg-type]
    except TypeError:  # something that cannot be hashed, or is wrong: the next line says it
        return Sandbox(root, **options)
