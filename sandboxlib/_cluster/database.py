# SPDX-License-Identifier: Apache-2.0
"""Database: a PostgreSQL on a port of loopback, with a password of its own, for one cluster."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

from .credentials import write_private
from .kept import ClusterError, Kept, free_port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PLACES = ("/usr/lib/postgresql", "/usr/pgsql", "/usr/local/pgsql")
NOBODY = "nobody"  # runs the database of root, as which it refuses to run


def programs() -> Path | None:
    """The directory of the newest initdb and postgres; None if there is none."""
    found = [
        directory
        for place in PLACES
        for directory in (Path(place) / "bin", *Path(place).glob("*/bin"))
        if (directory / "initdb").exists() and (directory / "postgres").exists()
    ]
    if found:
        return max(found, key=lambda directory: (_version(directory), str(directory)))
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path and shutil.which("postgres") else None


def _version(directory: Path) -> int:
    name = directory.parent.name
    return int(name) if name.isdigit() else 0


class Database:
    """A running PostgreSQL. directory: where its log is kept; its files are in a directory of their
    own in /tmp, since the user nobody cannot enter that of root.

    environ: variables for its clients. They name a file with the password, which no command line
    and no configuration has: any user of this machine reaches the port, and whoever may log in has
    the server execute programs, as the user that runs it.
    """

    def __init__(self, directory: Path) -> None:
        found = programs()
        if found is None:
            raise ClusterError("there is no PostgreSQL (apt install postgresql)")
        self._programs, self._log = found, directory / "postgres.log"
        self._user = NOBODY if os.geteuid() == 0 else ""
        self.files = tempfile.mkdtemp(prefix="sandboxlib-db.")
        self.port = free_port()
        # SQLAlchemy 2.1 takes psycopg for "postgresql:". BuildGrid 0.4 cannot poll its connections
        # for notifications: a client would hear of an end by the next keep-alive alone.
        self.url = f"postgresql+psycopg2://bgd@127.0.0.1:{self.port}/postgres"
        self._kept: Kept | None = None
        self._password = secrets.token_hex(32)
        text = f"*:*:*:*:{self._password}\n"
        self.environ = {"PGPASSFILE": str(write_private(directory / "pgpass", text))}
        try:
            self._make()
            self.start()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        ids: dict[str, Any] = {}
        password = write_private(Path(self.files) / "password", self._password)
        if self._user:
            entry = pwd.getpwnam(self._user)
            for path in (self.files, password):
                os.chown(path, entry.pw_uid, entry.pw_gid)
            ids = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        made = subprocess.run(
            [
                *(f"{self._programs}/initdb", "-D", f"{self.files}/data", "-U", "bgd"),
                *(
                    "--auth=scram-sha-256",
                    f"--pwfile={password}",
                    "--no-sync",
                    "--encoding=UTF8",
                    "--no-locale",
                ),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd="/",
            timeout=120,
            check=False,
            **ids,
        )
        os.unlink(password)
        if made.returncode != 0:
            raise ClusterError(f"initdb failed: {made.stderr.decode(errors='replace')[-2000:]}")

    def start(self) -> None:
        """Starts the server, and waits until it takes connections."""
        # A commit need not reach the disk: the kernel has it then, and outlives the server.
        settings = (
            "fsync=off",
            "full_page_writes=off",
            "unix_socket_directories=",
            "listen_addresses=127.0.0.1",
            "max_connections=200",
            "shared_buffers=32MB",
        )
        options = [word for setting in settings for word in ("-c", setting)]
        argv = [f"{self._programs}/postgres", "-D", f"{self.files}/data", "-p", str(self.port)]
        self._kept = kept = Kept([*argv, *options], self._log, self._user, self.files)
        ready = b"ready to accept connections"
        kept.wait_for("PostgreSQL", lambda: ready in self._log.read_bytes())

    def stop(self) -> None:
        """Kills the server: what it was told to keep it has, as after the crash of a machine."""
        if self._kept is not None:
            self._kept.kill()
            self._kept = None

    def close(self) -> None:
        """Ends the server, and removes its files."""
        self.stop()
        shutil.rmtree(self.files, ignore_errors=True)
