# SPDX-License-Identifier: Apache-2.0
"""The steps of the demo that try to break out: into the network, into files, out of time."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
from pathlib import Path

from ..api import Sandbox
from .demo_build import as_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .demo import Workshop

PROBE = r"""
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "connect")) {
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        int failed = connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&to, sizeof to);
        return printf("%s\n", failed ? strerror(errno) : "connected"), !!failed;
    }
    if (argc == 3 && !strcmp(argv[1], "write")) {
        int fd = open(argv[2], O_CREAT | O_WRONLY, 0644);
        return printf("%s\n", fd < 0 ? strerror(errno) : "written"), fd < 0;
    }
    if (argc == 2 && !strcmp(argv[1], "interfaces")) {
        for (struct if_nameindex *i = if_nameindex(); i && i->if_name; i++)
            printf("%s ", i->if_name);
        return 0;
    }
    if (argc == 3 && !strcmp(argv[1], "daemon")) {
        int there[2];
        char byte;
        if (pipe(there))
            return 2;
        if (fork()) /* 0 says that the daemon has been there */
            return close(there[1]), read(there[0], &byte, 1) == 1 ? 0 : 2;
        if (setsid(), fork())
            return 0;
        signal(SIGTERM, SIG_IGN);
        if (write(there[1], "x", 1) == 1)
            sleep(600);
    }
    return 2;
}
"""


def prove(shop: Workshop, box: Sandbox) -> bool:
    """Run three steps that try to break out. Returns True if the sandbox stopped them all."""
    print("Three steps that try to break out:")
    built = box.run([shop.compiler, "/build/probe.c", "-o", "/build/probe"])
    if built.exit != 0:
        print(as_text(built.err), file=sys.stderr)
        return False
    shutil.copy(shop.directory / "build" / "probe", shop.directory / "bare" / "probe")
    return all([_prove_network(shop, box), _prove_files(box), _prove_daemon(box)])


def _stopped(what: str, stopped: bool, how: str) -> bool:
    print(f"  {what}: {'stopped' if stopped else 'NOT STOPPED'} ({how})")
    return stopped


def _prove_network(shop: Workshop, box: Sandbox) -> bool:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        outside = shop.bare(["/build/probe", "connect", port]).exit
        exit, out, _ = box.run(["/build/probe", "connect", port])
    interfaces = as_text(box.run(["/build/probe", "interfaces"]).out)
    text = f"inside: {as_text(out)}, interfaces: {interfaces}; outside: exit {outside}"
    stopped = outside == 0 and exit == 1 and interfaces == "lo"
    return _stopped("connects to a server of the host", stopped, text)


def _prove_files(box: Sandbox) -> bool:
    good = True
    for path in ("/usr/escaped", "/src/escaped", "/escaped"):
        exit, out, _ = box.run(["/build/probe", "write", path])
        refused = exit == 1 and as_text(out) == os.strerror(errno.EROFS)
        good &= _stopped(f"writes {path}", refused, as_text(out))
    return good


def _prove_daemon(box: Sandbox) -> bool:
    mark = f"sandboxlib-demo-{os.getpid()}"
    exit, _, _ = box.run(["/build/probe", "daemon", mark])
    left = [pid for pid in os.listdir("/proc") if pid.isdigit() and mark in _command_line(int(pid))]
    return _stopped("leaves a daemon", exit == 0 and not left, f"{len(left)} processes left")


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []
