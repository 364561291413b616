# SPDX-License-Identifier: Apache-2.0
"""Reports what works on this machine, and for the rest the remedies of an administrator."""

from __future__ import annotations

from .. import errors
from .._cgroups import hierarchies
from .._executors.base import Executor
from .._spec.overlay import Overlay
from .._spec.spec import Spec
from . import choose

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def examine() -> list[dict[str, Any]]:
    """See sandboxlib.doctor."""
    return [_examine(choose.executor_named(name)) for name in choose.EXECUTORS]


def _examine(executor: Executor) -> dict[str, Any]:
    reason = executor.why_not()
    isolation = {} if reason else executor.maximum_possible_isolation()
    causes = []
    if reason or "undefined" in isolation.values():
        causes = executor.causes()
    if not reason:
        causes += executor.remarks()
    return {
        "name": executor.name,
        "usable": not reason,
        "reason": reason,
        "isolation": isolation,
        "overlay": "" if reason else _no_overlay(executor),
        "causes": causes,
    }


def _no_overlay(executor: Executor) -> str:
    """Why an executor takes no root of layers, or ""."""
    import tempfile

    try:
        with tempfile.TemporaryDirectory(prefix="sandboxlib-doctor-") as layer:
            box = Spec(Overlay(layer))
            return "; ".join(executor.refusals(box)) or executor.attempt(box)
    except OSError as error:
        return f"it was not tried: {error}"


#: Texts for the values of "seccomp" in maximum_possible_isolation().
_FILTERS = {
    "builds": "that of sandboxlib ('builds'), and profiles",
    "default": "the program's own; 'builds' and profiles are refused",
    "none": "none; ask for it with seccomp='none'",
}


def report() -> str:
    """The report of examine() as text."""
    lines = []
    for result in examine():
        lines.append(f"{result['name']}: {'works' if result['usable'] else 'does not work'}")
        if result["reason"]:
            lines.append(f"    {result['reason']}")
        undefined = [name for name, value in result["isolation"].items() if value == "undefined"]
        if undefined:
            lines.append(f"    cannot isolate {', '.join(undefined)}")
        if result["isolation"]:
            lines.append(f"    filter of system calls: {_FILTERS[result['isolation']['seccomp']]}")
        if result["usable"]:
            text = result["overlay"]
            lines.append(f"    roots of layers (Overlay, Image): {text or 'work'}")
        # A reason often is its first cause: it is told once.
        causes = [each for each in result["causes"] if each[0] not in result["reason"]]
        lines += [f"    {cause}\n        remedy: {remedy}" for cause, remedy in causes]
    try:
        lines.append(f"chosen here: {choose.executor_for_platform().NAME}")
    except errors.UnsupportedError:
        lines.append("chosen here: none")
    lines.append("cgroups, for limits on a whole run:")
    lines += [f"    {name}: {text}" for name, text in hierarchies.about_controllers()]
    return "\n".join(lines)
