# SPDX-License-Identifier: Apache-2.0
"""Starts a web server and its clients in one session, where they meet on an isolated network:

python examples/service_and_clients.py DIRECTORY
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from sandboxlib import DEVNULL, Mount, Sandbox, Session

PORT = "8000"
UP = """
import socket, sys, time
while socket.socket().connect_ex(("127.0.0.1", int(sys.argv[1]))):
    time.sleep(0.05)
"""
FETCH = """
import sys, urllib.request
url = f"http://127.0.0.1:{sys.argv[1]}/{sys.argv[2]}"
print(len(urllib.request.urlopen(url).read()))
"""


# [serve]
def sizes(directory: Path) -> Iterator[tuple[str, int]]:
    box = Sandbox("/", extra_mounts=[Mount.bind(directory, "/tmp/site", read_only=True)])
    server = ["python3", "-m", "http.server", PORT, "--directory", "/tmp/site"]
    with box.session() as session, session.start(server, stdout=DEVNULL, stderr=DEVNULL):
        session.run(["python3", "-c", UP, PORT], timeout=30, check=True)
        yield from fetch(session, sorted(path.name for path in directory.iterdir()))


def fetch(session: Session, names: list[str]) -> Iterator[tuple[str, int]]:
    clients = (["python3", "-c", FETCH, PORT, name] for name in names)
    for name, result in zip(names, session.map(clients, timeout=30), strict=True):
        yield name, int(result.stdout)


# [end]

if __name__ == "__main__":
    for name, size in sizes(Path(sys.argv[1])):
        print(f"{name}: {size}")
