# SPDX-License-Identifier: Apache-2.0
"""Runs an Action whose storage stages nothing: a server elsewhere, or one without LocalCAS.

The files of the input root come into the store of sandboxlib, where later actions find them, as
with the worker. It takes the extra `remote`.
"""

from __future__ import annotations

import sys

from .._actions.execute import Executor
from .._actions.site import Site
from .._remote import cas
from .._remote.server import Server
from .._store.storage import Storage
from .options import Options, PathOf, mounts_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

_LONGEST = 1e6  # seconds; buildbox-run has no limit of its own


class _Source:
    """The storage, as an Executor wants it."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def fetch(self, digests: Iterable[str]) -> Mapping[str, bytes]:
        return cas.fetch(self._server, digests)

    def download(self, digest: str, write: Callable[[bytes], object]) -> None:
        cas.download(self._server, digest, write)

    def upload(self, blobs: Mapping[str, Any]) -> int:
        return cas.upload(self._server, blobs)


def server_of(options: Options) -> Server:
    """The Server of --remote. SpecError."""
    remote = options.get("remote")
    for ours, theirs in (("grpc", "http"), ("grpcs", "https")):
        if remote.startswith(f"{theirs}://"):
            remote = ours + remote[len(theirs) :]
    if options.socket:
        remote = f"unix://{options.socket}"
    token = options.get("access-token")
    return Server(
        remote,
        instance=options.get("instance"),
        token=PathOf(token) if token else None,
        ca=options.get("server-cert") or None,
        cert=options.get("client-cert") or None,
        key=options.get("client-key") or None,
    )


def run(options: Options, action: bytes) -> tuple[str, bytes, str]:
    """Returns (the name of gRPC's code, the ActionResult, a message for people). The result is b""
    if the command did not run.
    """
    from .._remote.stubs import re_pb

    site = Site(allow_network=True, timeout=_LONGEST, max_timeout=_LONGEST)
    shown: dict[str, Any] = {}
    files = []
    if "no-logs-capture" in options:
        shown = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    for name in ("stdout", "stderr"):
        if path := options.get(f"{name}-file"):
            files.append(open(path, "wb"))  # noqa: SIM115 (closed below)
            shown[name] = files[-1]
    try:
        with (
            server_of(options) as server,
            Executor(site, _Source(server), Storage()) as executor,
        ):
            message = re_pb.Action.FromString(action)
            outcome = executor.execute(message, bind_mounts=mounts_of(options), **shown)
    finally:
        for file in files:
            file.close()
    result = outcome.result
    if result is None:
        return outcome.code, b"", outcome.message
    if "no-logs-capture" in options:
        for name in ("stdout_raw", "stdout_digest", "stderr_raw", "stderr_digest"):
            result.ClearField(name)
    return outcome.code, result.SerializeToString(), outcome.message
