# SPDX-License-Identifier: Apache-2.0
"""Uploads: what actions need is sent once, however many of them go at the same time.

What a server was seen to have is taken for granted for a while. A server that removed it answers
with FAILED_PRECONDITION, and then everything is asked for again. Actions that come while others are
being sent are gathered, and go together: one question and one batch for many.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from time import monotonic

from .. import _reapi
from .._inputs.snapshot import Folder, Leaf, message_of
from .._spec.inputs import source_error
from ..errors import SandboxError
from . import cas
from .portable import Sent, check_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .server import Server

KEPT = 300.0  # seconds for which a server is taken to have what it had
_MOST_KNOWN = 1_000_000  # digests; some 150 bytes each
_SENDERS = 2  # batches on their way at once


class _Batch:
    """What several actions need, on its way together."""

    def __init__(self) -> None:
        self.blobs: dict[str, Any] = {}
        self.done = threading.Event()
        self.failed = False


class Uploads:
    """The uploads to one server, from any thread."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._senders = threading.Semaphore(_SENDERS)
        self._seen: dict[str, float] = {}  # digests, with the time of monotonic()
        self._coming: dict[str, _Batch] = {}
        self._gathering = _Batch()

    def send(self, sent: Sent, again: bool = False) -> None:
        """Sends what the server lacks of an action. again: it lacks something that it had. Raises
        RemoteError; SetupError if an input cannot be read.
        """
        blobs: dict[str, Any] = {}
        for folder in sent.folders:
            self._gather(folder, blobs, again)
        blobs.update(sent.blobs)
        if again:
            self.forget(blobs)
        self._ensure(blobs)

    def forget(self, digests: Iterable[str]) -> None:
        """The server may have lost these."""
        with self._lock:
            for digest in digests:
                self._seen.pop(digest, None)

    def _gather(self, folder: Folder, blobs: dict[str, Any], again: bool) -> None:
        """What a directory consists of. One that the server has, with all below it, is left out."""
        message = b"" if folder.digest else message_of(folder)
        digest = folder.digest or _reapi.digest_of(message)
        if not again and self._has(digest):
            return
        check_names(folder)
        for node in folder.values():
            if isinstance(node, Leaf):
                blobs[node.digest] = _source(node)
            elif isinstance(node, Folder):
                self._gather(node, blobs, again)
        blobs[digest] = message or message_of(folder)

    def _has(self, digest: str) -> bool:
        return self._seen.get(digest, float("-inf")) > monotonic() - KEPT

    def _ensure(self, blobs: Mapping[str, Any]) -> None:
        with self._lock:
            wanted = {digest: each for digest, each in blobs.items() if not self._has(digest)}
            waits = {self._coming[digest] for digest in wanted if digest in self._coming}
            batch = self._gathering
            for digest, source in wanted.items():
                if digest not in self._coming:
                    self._coming[digest] = batch
                    batch.blobs[digest] = source
                    waits.add(batch)
        if batch in waits:
            with self._senders:
                self._lead(batch)
        for each in waits:
            each.done.wait()
        if any(each.failed for each in waits):  # by what another action needs, perhaps
            self._send(wanted)

    def _lead(self, batch: _Batch) -> None:
        """Sends a batch, unless somebody who waited for it has done so."""
        with self._lock:
            if batch is not self._gathering:
                return
            self._gathering = _Batch()
        try:
            self._send(batch.blobs)
        except (
            SandboxError,
            OSError,
        ):  # everybody then sends what is his own, and gets his own error
            batch.failed = True
        except BaseException:
            batch.failed = True
            raise
        finally:
            with self._lock:
                for digest in batch.blobs:
                    del self._coming[digest]
            batch.done.set()

    def _send(self, blobs: Mapping[str, Any]) -> None:
        try:
            cas.upload(self._server, blobs)
        except OSError as error:
            raise source_error(error, error.filename or "of a layer") from error
        now = monotonic()
        with self._lock:
            if len(self._seen) > _MOST_KNOWN:
                self._seen.clear()
            self._seen.update(dict.fromkeys(blobs, now))


def _source(leaf: Leaf) -> bytes | str:
    """Where the content of a file is. A link that was itself named is followed, as in a run."""
    if isinstance(leaf.source, bytes) or leaf.flags & os.O_NOFOLLOW:
        return leaf.source
    return os.path.realpath(leaf.source)
