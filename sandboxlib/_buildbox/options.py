# SPDX-License-Identifier: Apache-2.0
"""The command line of buildbox-run: what is understood, and what is refused by its name."""

from __future__ import annotations

import os
from collections.abc import Sequence

USAGE = """\
usage: buildbox-run-sandboxlib --remote=URL --action=FILE --action-result=FILE [OPTIONS]

Runs an Action of the Remote Execution API in a sandbox of its own, as buildbox-run does.

    --help                     print this
    --version                  print the version
    --capabilities             print what is supported, one a line, for BuildStream
    --validate-parameters      check the options, and run nothing

    --remote=URL               where the storage is: unix:PATH of casd, or http(s)://HOST:PORT
    --instance=NAME            the instance of the storage
    --action=FILE              the Action to run
    --action-result=FILE       where the ActionResult goes
    --bind-mount=SOURCE:PATH   SOURCE of this machine is at PATH for the command
    --ro-bind-mount=SOURCE:PATH   the same, read-only
    --no-logs-capture          the output of the command goes where that of this program goes
    --stdout-file=FILE         the stdout of the command goes there, and is captured
    --stderr-file=FILE         the stderr of the command goes there, and is captured
    --workspace-path=DIR       what the command writes is below DIR, on disk, and not in memory
    --enable-tmp-outputs       /tmp is that of the root, so outputs may be there
    --disable-localcas         do not let casd stage the input root: keep its files in our store
    --access-token=FILE        a token for the storage, where it is no socket
    --server-cert=FILE --client-cert=FILE --client-key=FILE   for TLS
    --log-level=LEVEL          debug, info, warning or error; --verbose is --log-level=debug
    --digest-function=SHA256   the only one
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._spec.mount import Mount

_VALUES = frozenset(
    "remote instance action action-result stdout-file stderr-file workspace-path access-token"
    " server-cert client-cert client-key log-level digest-function staging-mode".split()
)
_LISTS = frozenset(("bind-mount", "ro-bind-mount"))
_FLAGS = frozenset(
    "help version capabilities validate-parameters no-logs-capture enable-tmp-outputs"
    " disable-localcas verbose output-bypass-local-cache".split()
)
_REFUSED = {
    "collect-execution-stats": "the usage is in every result, as auxiliary_metadata",
    "graceful-shutdown-seconds": "the command is killed at once when this program is ended",
    "log-directory": "messages go to stderr",
    "post-action-command": "no command of the host runs after an action",
    "nested-instance": "there is no socket of the remote APIs in the sandbox",
    "nested-ac-enable-update": "there is no socket of the remote APIs in the sandbox",
    "googleapi-auth": "use --access-token",
    "credential-helper": "use --access-token",
    "oci-auth-token": "the root of a command is its input root",
    "num-parallel-layer-threads": "the root of a command is its input root",
}
#: Hints that change neither the sandbox nor the result.
_HINTS = frozenset(
    "retry-limit retry-delay retry-on-code request-timeout min-throughput keepalive-time"
    " load-balancing-policy token-reload-interval".split()
)
_LEVELS = {"trace": 0, "debug": 0, "info": 1, "warning": 2, "error": 3}


class UsageError(Exception):
    """The command line is wrong."""


class Options:
    """The options, by the names that buildbox-run has for them."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.values: dict[str, str] = {}
        self.flags: set[str] = set()
        self.mounts: list[tuple[str, str, bool]] = []  # source, target, read-only
        rest = list(reversed(arguments))
        while rest:
            self._take(rest.pop(), rest)

    def __contains__(self, flag: str) -> bool:
        return flag in self.flags

    def get(self, name: str) -> str:
        """The value of an option; "" without it."""
        return self.values.get(name, "")

    def _take(self, argument: str, rest: list[str]) -> None:
        if not argument.startswith("--"):
            raise UsageError(f"an argument that is no option: {argument!r}")
        name, equals, value = argument[2:].partition("=")
        if name in _REFUSED or name.startswith("ra-"):
            why = _REFUSED.get(name, "there is no asset service")
            raise UsageError(f"--{name} is not supported: {why}")
        if name in _FLAGS:
            if equals:
                raise UsageError(f"--{name} has no value")
            self.flags.add(name)
            return
        if name not in _VALUES | _LISTS | _HINTS and name != "protocol":
            raise UsageError(f"an unknown option: --{name}")
        if not equals:
            if not rest:
                raise UsageError(f"--{name} takes a value")
            value = rest.pop()
        if name in _LISTS:
            self.mounts.append((*_mount(name, value), name == "ro-bind-mount"))
        else:
            self.values[name] = value

    def check(self) -> None:
        """UsageError if something is missing or wrong."""
        for name in ("remote", "action", "action-result"):
            if not self.get(name):
                raise UsageError(f"--{name} is missing")
        for name, value, known in (
            ("digest-function", self.get("digest-function").upper(), ("", "SHA256")),
            ("protocol", self.get("protocol"), ("", "grpc")),
            ("log-level", self.get("log-level"), ("", *_LEVELS)),
            ("staging-mode", self.get("staging-mode"), ("", "default", "fuse", "copy-or-link")),
        ):
            if value not in known:
                text = ", ".join(each for each in known if each)
                raise UsageError(f"--{name}={value} is not supported: it is one of {text}")
        if "no-logs-capture" in self and (self.get("stdout-file") or self.get("stderr-file")):
            raise UsageError("--no-logs-capture leaves nothing for --stdout-file and --stderr-file")

    @property
    def is_verbose(self) -> bool:
        return "verbose" in self or _LEVELS.get(self.get("log-level"), 1) == 0

    @property
    def socket(self) -> str:
        """The path of the socket of --remote; "" if it is no socket."""
        remote = self.get("remote")
        if not remote.startswith("unix:"):
            return ""
        path = remote[len("unix:") :]
        return os.path.join("/", path.lstrip("/")) if path.startswith("//") else path


def _mount(name: str, value: str) -> tuple[str, str]:
    source, colon, target = value.partition(":")
    if not colon or not source or not target or ":" in target:
        raise UsageError(f"--{name}={value} is not SOURCE:PATH")
    return os.path.abspath(source), target


class PathOf:
    """A str as a PathLike, without pathlib, which takes long to import."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return self._path


def mounts_of(options: Options) -> list[Mount]:
    """The Mounts of --bind-mount and --ro-bind-mount."""
    from .._spec.mount import Mount

    return [
        Mount.bind(source, target, read_only=read_only)
        for source, target, read_only in options.mounts
    ]
