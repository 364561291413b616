# SPDX-License-Identifier: Apache-2.0
"""The configuration of BuildGrid for one cluster, as the text of a YAML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

#: What a job may ask of a worker. The scheduler compares the first, and passes on the others.
MATCHED = ("OSFamily", "ISA", "sandboxlib")
PASSED_ON = ("unixUID", "unixGID", "network", "chrootRootDigest", "container-image")

#: Seconds, but for the first; BuildGrid's own defaults wait for a second or longer each time.
SCHEDULER = {
    "max-job-attempts": 5,
    "poll-interval": 0.1,
    "bot-poll-interval": 0.1,
    "bot-session-keepalive-timeout": 10,
    "session-expiry-timer-interval": 1,
    "execution-timer-interval": 5,
    "max-execution-timeout": 600,
}
THREADS = 100  # each bot session and each client that waits for an action holds one


def quoted(text: object) -> str:
    """A scalar of YAML, which takes those of JSON."""
    return json.dumps(str(text))


def _listed(names: Sequence[str]) -> str:
    return "[" + ", ".join(map(quoted, names)) + "]"


def configuration(
    *,
    addresses: Sequence[str],
    database: str,
    storage: Path,
    instances: Sequence[str],
    memory: str | None,
    certificates: Sequence[Path],
    secret: Path | None,
    scheduler: Mapping[str, float],
) -> str:
    """The text of the file.

    addresses: where the server listens. database: its URL. storage: a directory for the blobs, if
    `memory` is None, which otherwise is the size of a store in memory, as "64M". certificates: the
    paths of the server's key, its certificate, and, if clients need one, of what signed theirs.
    secret: the path of a file with what HS256 tokens are signed with; None: nobody needs one.
    """
    lines = ["description: sandboxlib", f"thread-pool-size: {THREADS}", "server:"]
    for address in addresses:
        lines += ["  - !channel", f"    address: {quoted(address)}"]
        lines += [f"    insecure-mode: {'false' if certificates else 'true'}"]
        if certificates:
            names = ("tls-server-key", "tls-server-cert", "tls-client-certs")
            pairs = zip(names, certificates, strict=False)  # the last one need not be there
            lines += ["    credentials:"]
            lines += [f"      {name}: {quoted(path)}" for name, path in pairs]
    lines += ["authorization:"]
    if secret is None:
        lines += ["  method: none"]
    else:
        lines += ["  method: jwt", f"  secret: {quoted(secret)}", "  algorithm: hs256"]
    lines += ["monitoring:", "  enabled: false", "connections:", "  - !sql-connection &sql"]
    lines += [f"    connection-string: {quoted(database)}"]
    lines += ["    pool-size: 20", "    max-overflow: 40", "storages:"]
    if memory is None:
        lines += ["  - !disk-storage &cas", f"    path: {quoted(storage)}"]
    else:
        lines += ["  - !lru-storage &cas", f"    size: {memory}"]
    lines += ["caches:", "  - !lru-action-cache &ac", "    storage: *cas"]
    lines += ["    max-cached-refs: 100000", "    allow-updates: true"]
    lines += ["    cache-failed-actions: false", "schedulers:", "  - !sql-scheduler &sched"]
    lines += ["    sql: *sql", "    storage: *cas", "    action-cache: *ac"]
    lines += [f"    {name}: {value}" for name, value in {**SCHEDULER, **scheduler}.items()]
    lines += ["    property-set:", "      !dynamic-property-set"]
    lines += [f"      match-property-keys: {_listed(MATCHED)}"]
    lines += [f"      wildcard-property-keys: {_listed(PASSED_ON)}"]
    lines += ["    assigners:", "      - !priority-age-assigner", "        count: 2"]
    lines += ["        interval: 0.05", "instances:"]
    for name in instances:
        lines += [f"  - name: {quoted(name)}", "    services:"]
        lines += ["      - !cas", "        storage: *cas", "      - !bytestream"]
        lines += ["        storage: *cas", "      - !action-cache", "        cache: *ac"]
        lines += ["      - !execution", "        scheduler: *sched"]
        lines += ["        operation-stream-keepalive-timeout: 30"]
    return "\n".join(lines) + "\n"
