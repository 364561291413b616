# SPDX-License-Identifier: Apache-2.0
"""The thread that starts commands without a reaper, and lives as long as the process."""

from __future__ import annotations

import os
from threading import current_thread, main_thread

from .._runs.run import Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_keeper: ThreadPoolExecutor | None = None


def start(run: Run) -> None:
    """Start a run that outlives the call. Without a reaper the kernel kills the command when the
    thread that started it ends (prctl(2), PR_SET_PDEATHSIG): a thread that stays starts it then.
    """
    global _keeper  # noqa: PLW0603
    if run.plan.reaper or current_thread() is main_thread():
        run.start(fresh=True)
        return
    from concurrent.futures import ThreadPoolExecutor, wait

    if _keeper is None:
        _keeper = ThreadPoolExecutor(1, "sandboxlib-keeper")
    future = _keeper.submit(run.start, True)
    try:
        future.result()
    except BaseException:
        if not future.cancel():
            wait([future])
        raise


def _forget() -> None:
    global _keeper  # noqa: PLW0603
    _keeper = None


os.register_at_fork(after_in_child=_forget)
