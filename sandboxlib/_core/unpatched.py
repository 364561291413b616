# SPDX-License-Identifier: Apache-2.0
"""Functions of Python's that a program may have had replaced by gevent or eventlet.

eventlet takes poll and epoll away from the module select, and gevent epoll; gevent's poll does not
tell of a pipe whose other end was closed, and its os.close() leaves a descriptor open until its hub
runs, so that a reader of the other end waits for ever.
"""

from __future__ import annotations

import select
import sys
from posix import close as close

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def poll() -> select.poll:
    """select.poll()."""
    made: select.poll = _original("poll")()
    return made


def epoll() -> select.epoll:
    """select.epoll()."""
    made: select.epoll = _original("epoll")()
    return made


def _original(name: str) -> Any:
    if (gevent := sys.modules.get("gevent.monkey")) is not None:
        return gevent.get_original("select", name)
    if hasattr(select, name):
        return getattr(select, name)
    return getattr(sys.modules["eventlet.patcher"].original("select"), name)
