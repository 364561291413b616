# SPDX-License-Identifier: Apache-2.0
"""Runs an Action whose input root casd stages: the tree of casd is the only layer of an Overlay.

So nothing is copied before the run, the command cannot reach the files of casd, which lie below the
overlay, and afterwards only the upper has to be read: what is not there is known from the messages
of the input root.
"""

from __future__ import annotations

import os
from time import time_ns

from .. import _reapi
from .._actions.outputs import Encoder, Reader
from .._actions.site import Site
from .._inputs.snapshot import Folder, Leaf, Link
from .._spec.overlay import Overlay
from .._spec.policy import Policy
from .._spec.spec import Spec
from ..errors import SetupError, SpecError
from . import skeleton
from .casd import Casd
from .messages import Action, Command, Known, digest_field, struct, time_field
from .options import Options, PathOf, mounts_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .._runs.upper import Upper
    from ..result import Result

_READ_ONLY = b"SubtreeReadOnly"  # a property of directories, of BuildStream's
_KILLED = 128 + 9  # SIGKILL
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as a shell says it
#: The fields of ExecutedActionMetadata.
_TIMES = {
    **{"worker_start": 3, "worker_completed": 4, "input_fetch_start": 5},
    **{"input_fetch_completed": 6, "execution_start": 7, "execution_completed": 8},
    **{"output_upload_start": 9, "output_upload_completed": 10},
}
SITE = Site(allow_network=True)


class Report:
    """An ActionResult in the making. began: ns since 1970."""

    def __init__(self, began: int) -> None:
        self._times = {"worker_start": began}
        self._outputs = b""
        self.exit = 0
        self._streams: dict[int, str] = {}
        self._usage: list[tuple[str, float | str]] = []

    def note(self, name: str) -> None:
        """Something happens now. name: one of _TIMES."""
        self._times[name] = time_ns()

    def stream(self, number: int, digest: str) -> None:
        """number: 6 for stdout, 8 for stderr."""
        self._streams[number] = digest

    def file(self, path: str, leaf: Leaf, extra: bytes | None) -> None:
        encoded = _reapi._text(1, path.encode()) + digest_field(2, leaf.digest)
        encoded += _reapi._number(4, leaf.is_executable) + _reapi._extra(7, extra)
        self._outputs += _reapi._message(2, encoded)

    def link(self, path: str, link: Link, extra: bytes | None) -> None:
        encoded = _reapi._text(1, path.encode()) + _reapi._text(2, link.target)
        self._outputs += _reapi._message(12, encoded + _reapi._extra(4, extra))

    def directory(self, path: str, tree: str | None, directory: str | None) -> None:
        """tree, directory: digests of a Tree and of a Directory."""
        encoded = _reapi._text(1, path.encode())
        encoded += digest_field(3, tree) if tree else b""
        encoded += digest_field(5, directory) if directory else b""
        self._outputs += _reapi._message(3, encoded)

    def usage(self, result: Result) -> None:
        self._usage = [("wall", result.wall), ("executor", result.executor)]
        if result.usage is not None:
            values = result.usage.__dict__.items()
            self._usage += [(name, value) for name, value in values if type(value) in (int, float)]

    def encoded(self) -> bytes:
        metadata = _reapi._text(1, os.uname().nodename.encode())
        for name, number in _TIMES.items():
            if name in self._times:
                metadata += time_field(number, self._times[name])
        if self._usage:
            metadata += _reapi._message(11, struct(self._usage))
        message = self._outputs + _reapi._number(4, self.exit)
        for number, digest in self._streams.items():
            message += digest_field(number, digest)
        return message + _reapi._message(9, metadata)


def _box(root: Overlay, needs_more: bool, options: Mapping[str, Any]) -> Spec:
    """A Sandbox whose runs hand over the upper as it is, as Result.changes: a Spec does.

    needs_more: whether what only a Sandbox has is needed, which takes longer to import: start(),
    for a terminal, and the removal of an upper on disk that has files of other ids.
    """
    if not needs_more:
        return Spec(root, **options)
    from ..api import Sandbox

    class Box(Sandbox):
        _changes_of = Spec._changes_of

    return Box(root, **options)


class Run:
    """One Action. execute() runs it, and `report` has its result then."""

    def __init__(self, options: Options, casd: Casd, action: Action, report: Report) -> None:
        self._options, self._casd, self._action, self.report = options, casd, action, report

    def execute(self) -> bool:
        """Returns False if the timeout of the Action ended the command. CallFailed, SpecError,
        Refused, SandboxError.
        """
        action, casd, report = self._action, self._casd, self.report
        report.note("input_fetch_start")
        known: dict[str, bytes] = {}
        if not action.platform:  # before version 2.2 of the API the Command has it
            known = casd.fetch([action.command])
            action.platform = Command(known[action.command]).platform
        asked = _asked(action)
        if not casd.is_staging:
            casd.begin_staging(action.root, ids_of(asked))
        known.update(casd.fetch([action.command, action.root]))
        command = Command(known[action.command])

        def fetch(digest: str) -> bytes:
            return known[digest] if digest in known else casd.fetch([digest])[digest]

        folder = Known(action.root, fetch)
        if _is_marked(folder, b"true"):  # the directories in the root are looked at, in one call
            inner = [node.digest for node in folder.values() if isinstance(node, Folder)]
            known.update(casd.fetch(inner))
        box_options = {**self._box(command, folder), **asked}
        path = casd.staged()
        report.note("input_fetch_completed")
        with skeleton.Skeleton(path, folder, command, self._options.mounts) as layers:
            storage = self._options.get("workspace-path")
            root = Overlay(*layers, storage=PathOf(storage) if storage else "memory")
            needs_more = bool(storage) or os.isatty(0)
            return self._run(_box(root, needs_more, box_options), command, folder)

    def _box(self, command: Command, folder: Known) -> dict[str, Any]:
        """The options of the Sandbox, beside those that the platform asks for. SpecError."""
        has_tmp = "enable-tmp-outputs" in self._options
        return {
            "policy": Policy(capabilities="none"),
            "tmp": "root" if has_tmp else "private",
            "extra_mounts": mounts_of(self._options),
            "filesystem_writable_paths": _writable(command, folder, has_tmp),
        }

    def _run(self, box: Spec, command: Command, folder: Known) -> bool:
        from .streams import Streams

        report = self.report
        with Streams(self._options, self._casd) as streams:
            report.note("execution_start")
            try:
                result = streams.run(
                    box,
                    [*command.argv],
                    cwd=os.path.join("/", command.directory),
                    env=command.environment,
                    timeout=self._action.timeout,
                )
            except SetupError as error:
                if getattr(error, "step", None) != "exec":
                    raise
                os.write(streams.stderr, f"{error}\n".encode())
                report.exit = _NOT_FOUND if error.errno == 2 else _NOT_EXECUTABLE
                result = None
            report.note("execution_completed")
            report.note("output_upload_start")
            if result is not None:
                report.exit = 128 - result.exit if result.exit < 0 else result.exit
                report.usage(result)
            for number, digest in streams.upload():
                report.stream(number, digest)
            is_whole = result is None or not result.timed_out
            if result is not None:
                upper: Any = result.changes
                try:
                    if is_whole:
                        self._collect(upper, command, folder)
                    else:
                        report.exit = _KILLED
                finally:
                    upper.close()
            report.note("output_upload_completed")
            report.note("worker_completed")
        return is_whole

    def _collect(self, upper: Upper, command: Command, folder: Known) -> None:
        """Reads the outputs, and sends them to casd."""
        from .._actions.files import Files
        from .._store.storage import Storage

        report = self.report
        wanted = frozenset(("mtime", "unix_mode")) & command.properties
        with Reader(upper, "/", Files(Storage()), wanted) as reader:
            encoder = Encoder(wanted)
            contents: dict[str, bytes | str] = {}
            for path, kinds in command.outputs:
                node = reader.read(skeleton.place(command, path), folder)
                if isinstance(node, Known):
                    node.read()
                if isinstance(node, Leaf) and "file" in kinds:
                    report.file(path, node, encoder.extra(node))
                elif isinstance(node, Link):
                    report.link(path, node, encoder.extra(node))
                elif isinstance(node, Folder) and "directory" in kinds:
                    tree = None
                    if command.format in (0, 2):
                        message = encoder.tree(_loaded(node))
                        tree = _reapi.digest_of(message)
                        contents[tree] = message
                    directory = encoder.digest(node) if command.format in (1, 2) else None
                    report.directory(path, tree, directory)
            self._casd.upload({**contents, **encoder.messages, **reader.blobs})


def _loaded(folder: Folder) -> Folder:
    """A Folder with all below it read: a Tree has every directory."""
    todo = [folder]
    while todo:
        each = todo.pop()
        if isinstance(each, Known):
            each.read()
        todo += [node for node in each.values() if isinstance(node, Folder)]
    return folder


def _writable(command: Command, folder: Known, has_tmp: bool) -> Any:
    """What may be written to: all, unless BuildStream marked the root as read-only. Then it marks
    the directories that are not: those of the outputs, and some in the root. /dev, /proc and a
    private /tmp are file systems of the run. has_tmp: whether /tmp is that of the root.
    """
    if not _is_marked(folder, b"true"):
        return "all"
    paths = [f"/{os.fsdecode(name)}" for name, node in folder.items() if _is_marked(node, b"false")]
    for path, _ in command.outputs:
        names = skeleton.place(command, path)
        node: object = folder
        for number, name in enumerate(names):
            node = node.get(name) if isinstance(node, Folder) else None
            if _is_marked(node, b"false"):
                paths.append("/" + "/".join(map(os.fsdecode, names[: number + 1])))
                break
    own = ("/dev/", "/proc/") if has_tmp else ("/dev/", "/proc/", "/tmp/")
    return [path for path in dict.fromkeys(paths) if not f"{path}/".startswith(own)]


def _is_marked(node: object, value: bytes) -> bool:
    if isinstance(node, Known):
        node.read()
    properties = node.properties if isinstance(node, Folder) else None
    return properties is not None and (_READ_ONLY, value) in properties.named


def _asked(action: Action) -> dict[str, Any]:
    """The options of a Sandbox that the platform of an Action asks for. Refused, SpecError."""
    asked = SITE.asked(action.platform)
    if asked.pop("sandboxlib", False):
        raise SpecError("an Action with the property sandboxlib is for a worker of sandboxlib")
    user = asked.get("user")
    if user is None or (user.uid, user.gid) == (0, 0):
        asked["user"] = "root"
    elif (user.uid, user.gid) == (os.geteuid(), os.getegid()):
        asked["user"] = "caller"
    return asked


def ids_of(asked: Mapping[str, Any]) -> tuple[int, int]:
    """Whose processes use what casd stages, as casd sees them. asked: options of a Sandbox."""
    user = asked["user"]
    return (os.geteuid(), os.getegid()) if isinstance(user, str) else (user.uid, user.gid)
