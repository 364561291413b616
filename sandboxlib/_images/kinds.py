# SPDX-License-Identifier: Apache-2.0
"""The kinds of layers in a store: the same layer has other owners for another kind of caller."""

from __future__ import annotations

import os

from .._spec.overlay import Owners

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .. import _types
    from .._store.locks import Lease

REAL, SINGLE, RANGES = "layers/real", "layers/single", "layers/ranges-"


def kind_of(owners: Owners) -> str:
    """The directory of the store in which the layers for these owners are.

    'real': ids as they are; root has the same in a user namespace of its own, where ids that it
    does not map look as in a directory. 'single': all files are the caller's. 'ranges': with the
    ids that /etc/subuid and /etc/subgid give now.
    """
    if os.geteuid() == 0 or owners.kind == "real":
        return REAL
    if owners.kind == "single":
        return SINGLE
    import hashlib

    from .._runs import id_maps

    maps = repr((os.geteuid(), os.getegid(), id_maps.ranges("uid"), id_maps.ranges("gid")))
    return RANGES + hashlib.sha256(maps.encode()).hexdigest()[:16]


def default_user() -> _types.UserName:
    """The user of the runs in an image that has none: the one with which most owners are kept."""
    if os.geteuid() == 0:
        return "caller"
    from .. import user_namespace
    from .._spec.spec import Spec

    refused = user_namespace.EXECUTOR.refusals(Spec("/", user="ranges"))
    return "root" if refused else "ranges"


def hides_all(lease: Lease) -> bool:
    """Return True if nothing of the layers below this one is to be seen."""
    return os.path.lexists(os.path.join(os.path.dirname(lease.path), "hides-all"))
