# SPDX-License-Identifier: Apache-2.0
"""What hosts, which are Python processes of their own, begin with."""

from __future__ import annotations

#: For hosts: with {"map": True} in `mode`, Sandbox.run is a map of one command.
BY_MAP = """
def by_map(box, command, cwd=None, extra_env=None, **words):
    import threading
    from sandboxlib import _process
    if threading.get_ident() in _process.stops:  # a thread of a map, which runs what has no slot
        return run_itself(box, command, cwd, extra_env, **words)
    call = {"command": command, "cwd": cwd, "extra_env": extra_env, **words}
    (found,) = box.map([call], jobs=2, on_failure="continue")
    if isinstance(found, BaseException):
        raise found
    return found
run_itself = Sandbox.run
if mode.pop("map", False):
    from sandboxlib import _map  # not first of all in a signal handler
    Sandbox.run = by_map
"""
