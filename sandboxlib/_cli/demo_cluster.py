# SPDX-License-Identifier: Apache-2.0
"""The demo with a server and two workers: BuildGrid, PostgreSQL and sandboxlib-worker, all here."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from .._cluster.cluster import Cluster
from .._cluster.credentials import signed, write_private
from .._cluster.kept import ClusterError, Kept
from .._spec.mount import Mount
from .._spec.overlay import Overlay
from .._timeline.timeline import Timeline
from ..api import Sandbox
from .demo_build import Pass
from .demo_elsewhere import Elsewhere, print_passes
from .demo_project import Project

NAMES = ("one", "two")
VICTIM = NAMES[0]
BEGAN = b"session began"  # in the log of a worker that the server knows
EDIT = b"\n/* An edit that changes no object. */\n"
#: Seconds without a word after which the server gives a worker's actions to another one.
SILENCE = 5
VALID = 7 * 24 * 3600  # seconds that the token of the demo is good for
OF_THE_WORKER = ("grpc", "google.protobuf", "buildgrid", "prometheus_client")


def lacks(root: Path, mounts: Iterable[Mount]) -> str:
    """Why the demo cannot start a cluster here, with what to install; "" if nothing is known."""
    for name in OF_THE_WORKER:
        try:
            found = importlib.util.find_spec(name)
        except ImportError:
            found = None
        if found is None:
            return f"there is no module {name} (pip install 'sandboxlib[worker]')"
    if why := Cluster.lacks():
        return why
    with Sandbox(Overlay(root), extra_mounts=mounts) as box:
        return next(iter(box.lacks()), "")


class Workers:
    """Two sandboxlib-workers in a directory. Their actions see the root with the mounts, and their
    inputs below /work. token: the path of a file with a token for the server, if it wants one.
    """

    def __init__(
        self,
        directory: Path,
        url: str,
        root: Path,
        mounts: Iterable[Mount],
        token: Path | None = None,
    ) -> None:
        self._directory = directory
        slots = max(1, len(os.sched_getaffinity(0)) // len(NAMES))
        binds = ", ".join(
            f"{{ source = {json.dumps(each.source)}, target = {json.dumps(each.target)}, "
            "read_only = true }"
            for each in mounts
        )
        self._kept: dict[str, Kept] = {}
        try:
            for name in NAMES:
                own = directory / name
                own.mkdir(0o700)
                (own / "worker.toml").write_text(
                    f'server = {json.dumps(url)}\nname = "{name}"\nslots = {slots}\n'
                    f"cache = {json.dumps(str(own / 'cache'))}\n\n[sandbox]\n"
                    f"root = {json.dumps(str(root))}\n"
                    f'directory = "/work"\nextra_mounts = [{binds}]\n'
                )
                argv = [sys.executable, "-m", "sandboxlib._worker.main"]
                argv += ["--config", str(own / "worker.toml")]
                argv += ["--token", str(token)] if token else []
                self._kept[name] = Kept(argv, own / "log")
            for name, kept in self._kept.items():
                kept.wait_for(f"worker {name}", partial(_has_begun, kept.log))
        except BaseException:
            self.close()
            raise

    def kill(self, name: str) -> None:
        """Kills a worker as kill -9 does."""
        self._kept[name].kill()

    def close(self) -> None:
        for kept in self._kept.values():
            kept.stop()
        for name in self._kept:
            shutil.rmtree(self._directory / name / "cache", ignore_errors=True)


def _has_begun(log: Path) -> bool:
    return BEGAN in log.read_bytes()


def demo(
    project: Project,
    directory: Path,
    compiler: str,
    mounts: Iterable[Mount],
    timeline: Timeline | None,
) -> int:
    """Builds a project three times by a cluster of its own. Returns the exit status.

    directory: has root/, the root of the workers. Raises ClusterError.
    """
    from .._remote.remote import Remote
    from .._remote.server import Server

    mounts, root = tuple(mounts), directory / "root"
    if why := lacks(root, mounts):
        raise ClusterError(f"a cluster cannot start here: {why}")
    print(f"Starting PostgreSQL, BuildGrid and {len(NAMES)} workers")
    (directory / "server").mkdir(0o700)
    # Any user of this machine reaches the server's port: only those with the token may use it.
    secret = secrets.token_hex(32)
    token = write_private(directory / "token", signed(secret, VALID))
    scheduler = {"bot-session-keepalive-timeout": SILENCE}
    with Cluster(directory / "server", secret=secret, scheduler=scheduler) as cluster:
        workers = Workers(directory, cluster.url, root, mounts, token)
        try:
            with Server(cluster.url, token=token) as server:
                jobs = 2 * len(os.sched_getaffinity(0))
                remote = Remote(Sandbox(Overlay()), server)
                there = Elsewhere(project, remote, compiler, jobs, timeline)
                return _passes(there, workers, len(project.files))
        finally:
            workers.close()


def _passes(there: Elsewhere, workers: Workers, files: int) -> int:
    first, objects = there.build("first")
    second, _ = there.build("again, from the cache")
    killed: list[int] = []

    def seen(done: Pass) -> None:
        if not killed and done.steps >= files // 3:
            killed.append(done.steps)
            workers.kill(VICTIM)

    third, edited = there.build("every source edited, a worker killed", EDIT, seen)
    print_passes([first, second, third])
    print(f"worker {VICTIM} was killed with -9 after {sum(killed)} actions of the third build,")
    is_same = edited == objects
    print(f"whose files are {'the same as' if is_same else 'NOT those'} of the first")
    good = not (first.failures or second.failures or third.failures)
    return 0 if good and is_same and second.hits == second.steps else 1


def demo_at(
    project: Project,
    url: str,
    compiler: str,
    instance: str,
    token: Path | None,
    platform: dict[str, str],
    timeline: Timeline | None,
) -> int:
    """Builds a project twice by a server and its workers, which are there. Returns the exit status.

    instance, token: of Server. platform: properties that the workers have to have.
    """
    from .._remote.remote import Remote
    from .._remote.server import Server

    with Server(url, instance=instance, token=token) as server:
        remote = Remote(Sandbox(Overlay()), server, platform=platform)
        there = Elsewhere(project, remote, compiler, 16, timeline)
        first, _ = there.build("first")
        second, _ = there.build("again, from the cache")
    print_passes([first, second])
    return 0 if not (first.failures or second.failures) and second.hits == second.steps else 1
