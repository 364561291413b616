# SPDX-License-Identifier: Apache-2.0
"""Runs the reader of an upper in a sandbox: as nobody where the caller is root, and otherwise in a
user namespace in which the files have the owners that the command saw.
"""

from __future__ import annotations

import errno
import functools
import os
import sys

from .. import chroot, user_namespace
from .._host import machine
from .._seccomp.builds import CLOSED
from .._spec.command import Command
from .._spec.mount import Mount
from .._spec.policy import CAPABILITIES, Policy
from .._spec.spec import Spec
from .._spec.user import User
from ..errors import SetupError, UnsupportedError, printable, setup_error
from .child import jobs, reader
from .child.stack import TRUSTED
from .stream import Nonsense

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .._runs.upper import Upper
    from ..result import Result

NOBODY = 65534  # the overflow id, which owns nothing
STEP = "changes"
READ = "read the changes"  # what the child does, in messages
# Without it, an interpreter that was moved away from its libraries does not start.
_LOADER = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


@functools.cache
def _policy(reads_trusted: bool, is_root: bool) -> Policy:
    """CAP_DAC_READ_SEARCH reads files of any mode and owner. The attributes trusted.* take
    CAP_SYS_ADMIN (xattr(7)), so a filter closes the calls that it is for.
    """
    if not is_root:
        return Policy(capabilities=["dac_read_search"])
    wanted = ["dac_read_search", *(["sys_admin"] if reads_trusted else [])]
    have = int(machine.status("CapEff") or "0", 16)
    names = [name for name in wanted if have >> CAPABILITIES.index(name) & 1]
    closed = [name for calls, _, _ in CLOSED for name in calls.split()]
    rule = {"names": [*closed, "unshare", "ptrace", "chroot"], "action": "SCMP_ACT_ERRNO"}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    return Policy(capabilities=names, seccomp=profile)


class Reader:
    """Runs the jobs of child/jobs.py on an upper. UnsupportedError if none confines it."""

    def __init__(self, upper: Upper) -> None:
        kind = upper.owners.kind
        reads_trusted = upper.prefix == TRUSTED
        # Root of a user namespace with a single id has no other to give.
        user: Any = None if machine.has_one_id() else User(NOBODY, groups=())
        executor: Any = chroot.EXECUTOR
        if kind != "real":
            user = "ranges" if kind == "ranges" else "root"
            executor = user_namespace.EXECUTOR
        mounts = [Mount.dev("/dev")]
        for number, lower in enumerate(upper.lowers):
            target = f"{jobs.LOWER}{number}"
            mounts.append(Mount.bind(lower.path, target, read_only=True, recursive=False))
        self._box = Spec(
            "/",
            tmp="root",  # Python or this package may be installed below /tmp
            user=user,
            extra_mounts=mounts,
            policy=_policy(reads_trusted, kind == "real"),
        )
        self._run = executor.run_command
        self._upper = upper
        prefix = os.fsdecode(upper.prefix)
        self._args = [str(upper.fd), str(len(upper.lowers)), prefix]
        self.owner = "0 0" if kind == "single" else ""
        self.points = upper.targets

    def call(
        self,
        job: str,
        *args: str,
        write: Callable[[bytes], object] | None = None,
        max_output: int | None = None,
    ) -> bytes:
        """Run a job. args: as child/jobs.py takes them. write: takes the output as it comes; None:
        it is returned.

        Raises SetupError with the child's message, or UnsupportedError.
        """
        argv = [sys.executable, "-I", "-S", "-B", reader.__file__, job, *self._args, *args]
        options: dict[str, Any] = {} if write is None else {"stdout": write}
        if max_output is not None:
            options |= {"max_output": max_output, "on_overflow": "kill"}
        command = Command(argv, "/", env=_LOADER, pass_fds=[self._upper.fd], **options)
        try:
            result = self._run(self._box, command, True)
        except UnsupportedError as error:
            text = f"changes cannot be read safely by this caller: {error}"
            raise UnsupportedError(text) from error
        if result.exit != 0:
            raise _failure(result, f"read {printable(args[0])}" if job == "read" else READ)
        return result.out or b""


def _failure(result: Result, what: str) -> SetupError:
    """The error for a child that did not end well. what: what it had to do."""
    err = printable((result.err or b"")[-2000:].decode(errors="backslashreplace"))
    code, _, text = err.partition(" ")
    if result.exit == jobs.FAILED and code.isascii() and code.isdigit() and len(code) < 5:
        if text == os.strerror(int(code)):
            return setup_error(int(code), None, STEP, what)
        return setup_error(int(code), None, STEP, f"{what}: {text}")
    what = f"{what}: the reader ended with {result.exit}: {err[-500:]}"
    return setup_error(errno.EIO, None, STEP, what)


def nonsense(error: Nonsense) -> SetupError:
    """The error for an answer that an honest child never gives."""
    what = f"{READ}: the reader said {printable(str(error))}"
    return setup_error(errno.EPROTO, None, STEP, what)
