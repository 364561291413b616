# SPDX-License-Identifier: Apache-2.0
"""Cluster: BuildGrid with its database, on ports of loopback, for as long as a block runs."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import _types
from . import database
from .buildgrid import configuration
from .credentials import write_private
from .database import Database
from .kept import ClusterError, Kept, free_port

VARIABLE = "SANDBOXLIB_CLUSTER"


def bgd() -> str | None:
    """BuildGrid's program: of the environment that $SANDBOXLIB_CLUSTER names, or of this Python's,
    or on PATH; None if there is none.
    """
    places = [sysconfig.get_path("scripts"), os.path.dirname(sys.executable)]
    if VARIABLE in os.environ:
        places.insert(0, os.path.join(os.environ[VARIABLE], "bin"))
    for place in places:
        if os.access(path := os.path.join(place, "bgd"), os.X_OK):
            return path
    return shutil.which("bgd")


class Cluster:
    """A BuildGrid with a PostgreSQL, which serve this machine alone. A context manager.

    directory: path of an existing directory, for the blobs, the configuration and the logs.
    instances: names of instances; all share one store and one queue. Default: one without a name.
    memory: str as "64M", the size of a store of blobs in memory, which forgets the blobs that were
        used least recently. None (the default): a store in `directory`, without a limit.
    certificates: paths of PEM files: the server's key, its certificate, and the certificate that
        has to have signed those of clients, if they need one. Default: no TLS.
    secret: str, with which the tokens of clients have to be signed (JWT, HS256). None (the
        default): clients need none.
    scheduler: settings of BuildGrid's !sql-scheduler, by their names there.

    url: str, for Server. database, server: the two processes (.log is the path of what each wrote).
    socket: str, the same server as a URL of a Unix socket; "" with TLS.
    All processes end with this one, however it ends. Raises ClusterError, a SandboxError.
    """

    def __init__(
        self,
        directory: _types.Path,
        *,
        instances: Sequence[str] = ("",),
        memory: str | None = None,
        certificates: Sequence[_types.Path] = (),
        secret: str | None = None,
        scheduler: Mapping[str, float] | None = None,
    ) -> None:
        if why := self.lacks():
            raise ClusterError(why)
        self.directory = Path(directory).absolute()
        self.port = free_port()
        self.url = f"{'grpcs' if certificates else 'grpc'}://127.0.0.1:{self.port}"
        path = f"{self.directory}/bgd.sock"
        # The path of a Unix socket has 107 bytes.
        self.socket = "" if certificates or len(os.fsencode(path)) > 107 else f"unix://{path}"
        self._closed = False
        self.server: Kept | None = None
        (self.directory / "cas").mkdir(parents=True, exist_ok=True)
        self.database = Database(self.directory)
        try:
            self._run("migrate", "apply", self.database.url)
            text = configuration(
                addresses=[f"127.0.0.1:{self.port}", *([self.socket] if self.socket else ())],
                database=self.database.url,
                storage=self.directory / "cas",
                instances=instances,
                memory=memory,
                certificates=[Path(each).absolute() for each in certificates],
                secret=None if secret is None else write_private(self.directory / "secret", secret),
                scheduler=scheduler or {},
            )
            (self.directory / "bgd.yml").write_text(text)
            self.start_server()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def lacks() -> str:
        """Why a cluster cannot start here; "" if nothing is known that would prevent it."""
        if bgd() is None:
            return f"there is no bgd (pip install 'buildgrid[database]==0.4.4', or set {VARIABLE})"
        if database.programs() is None:
            return "there is no PostgreSQL (apt install postgresql)"
        if os.geteuid() == 0:
            try:
                pwd.getpwnam(database.NOBODY)
            except KeyError:
                return "PostgreSQL does not run as root, and there is no user nobody"
        return ""

    def _run(self, *args: str) -> None:
        program = bgd()
        assert program is not None
        done = subprocess.run(
            [program, *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8", **self.database.environ},
        )
        if done.returncode != 0:
            text = (done.stderr + done.stdout).decode(errors="replace")[-2000:]
            raise ClusterError(f"bgd {args[0]} failed: {text}")

    def start_server(self) -> None:
        """Starts BuildGrid, again on the same port, and waits until it answers."""
        program = bgd()
        assert program is not None
        assert self.server is None
        ready = self.directory / "bgd.pid"
        ready.unlink(missing_ok=True)
        argv = [program, "server", "start", str(self.directory / "bgd.yml"), "-v"]
        argv += ["--pid-file", str(ready)]
        log = self.directory / "bgd.log"
        self.server = kept = Kept(argv, log, environ=self.database.environ)
        kept.wait_for("BuildGrid", lambda: ready.exists() and ready.stat().st_size > 0)

    def stop_server(self) -> None:
        """Kills BuildGrid, as a crash does: its clients get no farewell."""
        if self.server is not None:
            self.server.kill()
            self.server = None

    def start_database(self) -> None:
        """Starts PostgreSQL again on the same port, with what it had."""
        self.database.start()

    def stop_database(self) -> None:
        """Kills PostgreSQL, as a crash does."""
        self.database.stop()

    def close(self) -> None:
        """Ends both, and removes the files of the database. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self.stop_server()
            self.database.close()

    def __enter__(self) -> _types.Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()
