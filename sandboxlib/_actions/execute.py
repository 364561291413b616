# SPDX-License-Identifier: Apache-2.0
"""Executor: runs Actions of the Remote Execution API in prepared Sandboxes on this machine."""

from __future__ import annotations

import errno
from _thread import allocate_lock
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from .._choice import choose
from .._runs.run import Stopped, this_thread
from .._spec.command import Command
from .._spec.mount import Mount
from .._store.storage import Storage
from ..api import Sandbox
from ..errors import RemoteError, SandboxError, SetupError, SpecError, UnsupportedError
from ..result import Result
from .action import Job, job_of, platform_of, read
from .files import Files
from .inputs import Inputs
from .outcome import Outcome, Refused
from .report import Times
from .results import not_begun, result_of, result_of_ours
from .site import Site

TYPE_CHECKING = False
if TYPE_CHECKING:
    from threading import Event
    from typing import Any

    from .._inputs.snapshot import Folder
    from .ours import OurJob

_MOST_BOXES = 16
_FULL = (errno.ENOSPC, errno.EDQUOT)
#: With these the server of blobs does not answer, or does not take our token or certificate: the
#: Action may well run on another machine.
_NOT_HERE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNAUTHENTICATED", "PERMISSION_DENIED")
#: Steps that fail with these for what an Action names, in its own root.
_STEPS = ("cwd", "exec", "mount", "target")
_NAMED = (errno.E2BIG, errno.EINVAL, errno.EISDIR, errno.ENOENT, errno.ENOTDIR)


class Executor:
    """Executes Actions. Any threads may call execute() at once.

    site: Site. source: where blobs come from and go to: an object with fetch(digests) -> dict,
    download(digest, write) and upload(blobs), as the functions of _remote/cas.py with a Server.
    store: Store, in which files and layers are kept from action to action.
    """

    def __init__(self, site: Site, source: Any, store: Storage) -> None:
        from .._remote.trees import Folders

        self.site, self.source, self.store = site, source, store
        self.files = Files(store)
        self.folders = Folders(self.files.source)
        self.inputs = Inputs(site.where, self.bring)
        self._lock = allocate_lock()
        self._boxes: OrderedDict[object, Sandbox] = OrderedDict()

    def execute(
        self,
        action: Any,
        *,
        stop: Event | None = None,
        bind_mounts: Iterable[Mount] = (),
        stdout: Any = None,
        stderr: Any = None,
        upload: bool = True,
    ) -> Outcome:
        """Executes an Action, and returns how that ended. It raises nothing for what an Action, its
        command or the server does.

        action: the digest of an Action, "HASH/SIZE", or its message. stop: an Event that ends the
        command within 100 ms once it is set: CANCELLED. bind_mounts: Mounts of the caller's, beside
        those of the site. stdout, stderr: binary files, or functions, to which the output goes as
        it arrives, as well; None: nowhere. upload: bool. False: stdout, stderr and the outputs stay
        here, and the result is of no use to another machine.
        """
        times = Times()
        try:
            job = self._job(action, tuple(bind_mounts))
            return self._execute(job, times, stop, (stdout, stderr), upload)
        except (Refused, Stopped, SandboxError, OSError) as error:
            return outcome_of(error)

    def _job(self, action: Any, mounts: tuple[Mount, ...]) -> Job | OurJob:
        message, command, folder = read(self, action)
        asked = self.site.asked(platform_of(message, command))
        if not asked.pop("sandboxlib", False):
            return job_of(self, message, command, folder, asked, mounts)
        from .ours import OurJob

        return OurJob(self, message, command, folder)

    def _execute(
        self,
        job: Job | OurJob,
        times: Times,
        stop: Event | None,
        sinks: tuple[Any, Any],
        upload: bool,
    ) -> Outcome:
        times.note("input_fetch_start")
        box, command = self.box(job), job.command(sinks)
        self._stage(box, command)
        times.note("input_fetch_completed")
        times.note("execution_start")
        try:
            result = _run(box, command, stop)
        except SetupError as error:
            if (code := _exit_code(error)) is None:
                raise
            times.note("execution_completed")
            return not_begun(self, code, str(error), times)
        times.note("execution_completed")
        if isinstance(job, Job):
            return result_of(self, job, result, times, upload, stop)
        return result_of_ours(self, job, result, times, upload)

    def _stage(self, box: Sandbox, command: Command) -> None:
        """Makes the layers of the inputs. A file that was removed meanwhile, or is damaged, is
        fetched again; a store that is full is pruned once.
        """
        for number in range(3):
            try:
                stage(box, command)
                return
            except SetupError as error:
                if number == 2 or error.errno not in (*_FULL, errno.ESTALE):
                    raise
                if error.errno in _FULL:
                    self.release()
                    self.store.prune()
                elif error.filename is not None:
                    self.files.forget_path(error.filename)

    def release(self) -> None:
        """Lets go of all layers, so that they can be pruned once no run uses them."""
        self.inputs.clear()
        with self._lock:
            boxes = list(self._boxes.values())
        for box in boxes:
            box.close()

    def close(self) -> None:
        """Ends the slots, and lets go of all layers."""
        self.release()

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def bring(self, folder: Folder) -> None:
        """Fetches the contents of a Folder that are not here."""
        from .._remote.trees import leaves

        self.files.bring({leaf.digest for leaf in leaves(folder)}, self.source)

    def fetch(self, digests: Iterable[str]) -> Mapping[str, bytes]:
        """The contents of small blobs. Refused if the server lacks one."""
        found: Mapping[str, bytes] = self.source.fetch(list(digests))
        return found

    def box(self, job: Job | OurJob) -> Sandbox:
        """The Sandbox of a job; one with the same options is used again, with its slots."""
        key = job.box_key
        with self._lock:
            if (box := self._boxes.get(key)) is not None:
                self._boxes.move_to_end(key)
                return box
        box = Sandbox(job.root(), store=self.store, **job.options)
        with self._lock:
            box = self._boxes.setdefault(key, box)
            while len(self._boxes) > _MOST_BOXES:
                self._boxes.popitem(last=False)[1].close()
        return box


def stage(box: Sandbox, command: Command) -> None:
    """Makes the layers of the inputs of a Command, which a run would make otherwise."""
    made = box._for(command)
    plan = choose.native_executor_of(made).plan_of(made)
    assert plan.overlay is not None
    plan.overlay.placer.ready(command, made._cwd_of(command))


def _run(box: Sandbox, command: Command, stop: Event | None) -> Result:
    before, this_thread.stop = this_thread.stop, stop
    try:
        return box.run(command)
    finally:
        this_thread.stop = before


def _exit_code(error: SetupError) -> int | None:
    """The exit status for a program that cannot be executed, as a shell has it; None if the error
    is no fault of the command.
    """
    if error.step != "exec":
        return None
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return 127
    known = (errno.EACCES, errno.ENOEXEC, errno.EISDIR, errno.EPERM, errno.ELIBBAD, errno.EINVAL)
    return 126 if error.errno in known else None


def _is_of_action(error: BaseException) -> bool:
    """Whether what the Action names is at fault, and not this machine: INTERNAL would have it
    tried again by one worker after the other, each of which would rest for it.
    """
    number = getattr(error, "errno", None)
    if number in (errno.ENAMETOOLONG, errno.ELOOP):
        return True
    if not isinstance(error, SetupError):
        return False
    if error.step == "source":
        return number in _NAMED and error.what.startswith("writable path")
    return number in _NAMED and error.step in _STEPS


def outcome_of(error: BaseException) -> Outcome:
    """The Outcome of an execution that raised an error."""
    missing: tuple[str, ...] = ()
    code, text = "INTERNAL", str(error)
    if isinstance(error, Refused):
        code, missing = error.code, error.missing
    elif isinstance(error, Stopped):
        code, text = "CANCELLED", "the execution was cancelled"
    elif isinstance(error, RemoteError):
        if error.code == "NOT_FOUND":
            code, missing = "FAILED_PRECONDITION", error.digests
            text = f"the server lacks blobs of the action: {', '.join(missing[:5])}"
        elif error.code in _NOT_HERE:
            code = "UNAVAILABLE"
    elif isinstance(error, SpecError):
        code = "INVALID_ARGUMENT"
    elif isinstance(error, UnsupportedError):
        code = "FAILED_PRECONDITION"
    elif getattr(error, "errno", None) in _FULL:
        code = "RESOURCE_EXHAUSTED"
    elif _is_of_action(error):
        code = "INVALID_ARGUMENT"
    return Outcome(None, code, text, missing)
