# SPDX-License-Identifier: Apache-2.0
"""What gevent and eventlet replace in Python's own modules, when a program asks them for it.

A thread then is a greenlet: it runs only while no other one of its thread does, and a wait in the
core stops all of them. So whatever needs a thread beside the caller is refused. Both also take poll
and epoll away from the module select.
"""

from __future__ import annotations

import sys

from ..errors import UnsupportedError

REMEDY = "do this in a process that is not patched"


def library() -> str:
    """The name of the library that has replaced threads by greenlets; "" if none has."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        return "gevent"
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return "eventlet"
    return ""


def refuse(what: str) -> None:
    """Raises UnsupportedError if threads are greenlets. what: what needs a thread."""
    if name := library():
        raise UnsupportedError(
            f"{name} has replaced Python's threads by greenlets, and {what} needs a thread that"
            f" runs beside the caller: {REMEDY}"
        )
