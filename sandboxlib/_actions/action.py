# SPDX-License-Identifier: Apache-2.0
"""Reads an Action: what is to run, in which Sandbox, with which inputs and outputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from .. import _reapi
from .._inputs.snapshot import Folder
from .._inputs.tree import Tree
from .._spec.command import Command
from .._spec.mount import Mount
from .._spec.overlay import Overlay
from .._spec.streams import Tee
from ..errors import SpecError
from .inputs import resolved, with_directories
from .outcome import Refused
from .outputs import KNOWN, MOST_DEEP
from .site import Site

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST_ACTION = 16 << 20  # bytes of an Action or a Command
_MOST_OUTPUTS = 10_000
_READ_ONLY = b"SubtreeReadOnly"  # a property of directories that BuildStream uses
#: The mount points that a root has which is an input root.
_MOUNT_POINTS = ("dev", "proc", "tmp")


class Output:
    """A path that the Action names as an output.

    path: str, as the Action has it. place: the names below the input root, with its links followed;
    None if they lead out of it. kinds: what may lie there: "file", "directory".
    """

    __slots__ = ("kinds", "path", "place")

    def __init__(self, path: str, place: tuple[bytes, ...] | None, kinds: frozenset[str]) -> None:
        self.path, self.place, self.kinds = path, place, kinds


class Job:
    """What an Action asks for. Files of the input root are not fetched yet.

    folder: the input root, with the directories that the worker makes. inputs: the same, for a
    Command. options: keyword arguments of Sandbox. wanted: the node properties of outputs.
    trees, directories: bool, whether an output directory has a Tree, and the digest of a Directory.
    """

    def __init__(self, site: Site, action: Any, command: Any, folder: Folder) -> None:
        self.site, self.action, self.message = site, action, command
        self.folder = folder
        self.inputs: Mapping[str, Tree] = {}
        self.options: dict[str, Any] = {}
        self.cwd = site.where
        self.outputs: list[Output] = []
        self.wanted = KNOWN.intersection(command.output_node_properties)
        self.seconds = site.seconds(seconds_of(action))
        told = _format(command)
        self.trees, self.directories = told in (0, 2), told in (1, 2)

    @property
    def box_key(self) -> object:
        return repr(sorted(self.options.items(), key=lambda item: item[0]))

    def root(self) -> Any:
        """The root of the Sandbox."""
        site = self.site
        if site.is_input_root:
            return Overlay(Tree({name: Tree({}) for name in _MOUNT_POINTS}))
        return site.root if isinstance(site.root, Overlay) else Overlay(site.root)

    def command(self, sinks: tuple[Any, Any]) -> Command:
        """The Command. sinks: what gets stdout and stderr beside the result; None: nothing."""
        message, most = self.message, self.site.max_output
        streams: dict[str, Any] = {}
        for name, sink in zip(("stdout", "stderr"), sinks, strict=True):
            if sink is not None:
                file = _Writer(sink) if callable(sink) else sink
                streams[name] = Tee(file, keep_head=most)  # type: ignore[arg-type]
        made = Command(
            list(message.arguments),
            self.cwd,
            env=_environment(message),
            timeout=self.seconds,
            max_output=most,
            on_overflow="kill",
            changes="keep",
            **streams,
        )
        # The input root may be the root itself, which a caller's Command cannot have.
        made.__dict__.update(inputs=MappingProxyType(dict(self.inputs)), _is_plain=False)
        return made


class _Writer:
    """A function as the file of a Tee."""

    def __init__(self, write: Any) -> None:
        self.write = write


def read(executor: Any, action: Any) -> tuple[Any, Any, Folder]:
    """The messages of an Action and its Command, and the input root. action: the digest of an
    Action, or its message. Refused, SpecError, RemoteError.
    """
    if isinstance(action, str):
        action = _parsed("Action", action, executor.fetch([_small(action)]))
    names = [_digest("command_digest", action.command_digest)]
    top = _digest("input_root_digest", action.input_root_digest)
    folder = executor.folders.known(top)
    if folder is None and int(top.partition("/")[2]) <= _MOST_ACTION:
        names.append(top)  # with the Command: one answer less to wait for
    found = executor.fetch([_small(name) for name in names])
    command = _parsed("Command", names[0], found)
    if folder is None:
        folder = executor.folders.load(top, _after(found, executor.fetch))
    if not command.arguments:
        raise Refused("INVALID_ARGUMENT", "the Command has no arguments")
    return action, command, folder


def platform_of(action: Any, command: Any) -> list[tuple[str, str]]:
    """The properties of the platform: those of the Action, and of the Command if it has none."""
    platform = action.platform if action.HasField("platform") else command.platform
    return [(each.name, each.value) for each in platform.properties]


def job_of(
    executor: Any,
    action: Any,
    command: Any,
    folder: Folder,
    asked: dict[str, Any],
    mounts: tuple[Mount, ...],
) -> Job:
    """The Job of an Action. asked: what Site.asked() says of its platform. Refused, SpecError."""
    job = Job(executor.site, action, command, folder)
    _place(job)
    _set_options(job, executor.site, asked, mounts)
    job.inputs = executor.inputs.of(job.folder)
    return job


def _after(found: Mapping[str, bytes], fetch: Any) -> Any:
    """A fetch() that knows some blobs already."""

    def both(digests: Iterable[str]) -> Mapping[str, bytes]:
        wanted = list(digests)
        left = [digest for digest in wanted if digest not in found]
        return {**found, **fetch(left)} if left else found

    return both


def _small(digest: str) -> str:
    if int(digest.partition("/")[2]) > _MOST_ACTION:
        raise Refused("INVALID_ARGUMENT", f"the message {digest} is larger than 16 MiB")
    return digest


def _digest(what: str, message: Any) -> str:
    return _reapi.check_digest(what, f"{message.hash}/{message.size_bytes}")


def _parsed(kind: str, digest: str, found: Mapping[str, bytes]) -> Any:
    from .._remote.stubs import message, re_pb

    if _reapi.digest_of(found[digest]) != digest:
        raise SpecError(f"the content of the {kind} {digest} has another digest")
    parsed = getattr(re_pb, kind)()
    try:
        parsed.ParseFromString(found[digest])
    except message.DecodeError:
        raise SpecError(f"the blob {digest} is no {kind} message") from None
    return parsed


def seconds_of(action: Any) -> float | None:
    """The timeout of an Action; None if it has none."""
    if not action.HasField("timeout"):
        return None
    seconds = action.timeout.seconds + action.timeout.nanos / 1e9
    if seconds < 0:
        raise Refused("INVALID_ARGUMENT", f"a timeout of {seconds:g} s")
    return float(seconds)


def _environment(command: Any) -> dict[str, str]:
    variables: dict[str, str] = {}
    for each in command.environment_variables:
        if each.name in variables:
            raise SpecError(f"the environment has {each.name!r} twice")
        variables[each.name] = each.value
    return variables


def _format(command: Any) -> int:
    """Command.output_directory_format, which the stubs of earlier versions lack: 0, a Tree, 1 the
    digest of a Directory, 2 both.
    """
    told = getattr(command, "output_directory_format", None)
    if told is None:
        told = _unknown_number(command, 9)
    if told not in (0, 1, 2):
        raise Refused("INVALID_ARGUMENT", f"output_directory_format is {told}")
    return int(told)


def _unknown_number(message: Any, field: int) -> int:
    from google.protobuf.unknown_fields import UnknownFieldSet

    found = [each.data for each in UnknownFieldSet(message) if each.field_number == field]
    return found[-1] if found and isinstance(found[-1], int) else 0


# ---- paths -----------------------------------------------------------------------------------


def _place(job: Job) -> None:
    """Finds where the working directory and the outputs are, and makes what leads there."""
    site, command = job.site, job.message
    work = _names("working_directory", command.working_directory, [])
    place = resolved(job.folder, [os.fsencode(name) for name in work], site.is_input_root)
    if place is None:
        raise Refused("INVALID_ARGUMENT", "the working directory leads out of the input root")
    directories = [place]
    for path, kinds in _declared(command):
        names = [os.fsencode(name) for name in _names("an output", path, work)]
        # A link that is an output itself is one: only the way to it is followed.
        above = resolved(job.folder, names[:-1], site.is_input_root)
        if above is not None:
            directories.append(above)
            above = (*above, *names[-1:])
        job.outputs.append(Output(path, above, kinds))
    job.folder = with_directories(job.folder, directories)
    inside = b"/".join(place)
    job.cwd = os.path.join(site.where, os.fsdecode(inside)) if inside else site.where


def _declared(command: Any) -> Iterator[tuple[str, frozenset[str]]]:
    """The paths of the outputs, and what may lie there. output_paths replaces the other two."""
    both = frozenset({"file", "directory"})
    if command.output_paths:
        declared = [(path, both) for path in command.output_paths]
    else:
        declared = [(path, frozenset({"file"})) for path in command.output_files]
        declared += [(path, frozenset({"directory"})) for path in command.output_directories]
    if len(declared) > _MOST_OUTPUTS:
        raise Refused("INVALID_ARGUMENT", f"{len(declared)} outputs, and there may be 10,000")
    yield from dict(declared).items()


def _names(what: str, path: str, above: list[str]) -> list[str]:
    """The names of a path below the input root. above: those of the directory where it starts."""
    if path.startswith("/") or "\0" in path:
        raise Refused("INVALID_ARGUMENT", f"{what} is not relative: {path!r}")
    names = list(above)
    for name in path.split("/"):
        if name == "..":
            if not names:
                raise Refused("INVALID_ARGUMENT", f"{what} is outside of the input root: {path!r}")
            names.pop()
        elif name not in ("", "."):
            names.append(name)
    if len(names) > MOST_DEEP:
        text = f"{what} is more than {MOST_DEEP} directories deep"
        raise Refused("INVALID_ARGUMENT", text)
    return names


# ---- options ---------------------------------------------------------------------------------


def _set_options(job: Job, site: Site, asked: dict[str, Any], mounts: tuple[Mount, ...]) -> None:
    options = {"umask": 0o022, **site.options, **asked}
    if mounts:
        options["extra_mounts"] = [*options.get("extra_mounts", ()), *mounts]
    if site.is_input_root and "tmp" not in options and _uses_tmp(job):
        options["tmp"] = "root"
    if (writable := _writable(job.folder, site.where)) is not None:
        own = _own_mounts(options) if site.is_input_root else ()
        options["filesystem_writable_paths"] = [
            path for path in writable if not f"{path}/".startswith(own)
        ]
    job.options = options


def _own_mounts(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the run has file systems of its own. What the input root says of them counts not:
    BuildStream marks /dev, /proc and /tmp as writable in a root that is read-only.
    """
    if options.get("tmp", "private") == "root":
        return ("/dev/", "/proc/")
    return ("/dev/", "/proc/", "/tmp/")


def _uses_tmp(job: Job) -> bool:
    """Whether the Action has something in the /tmp of its input root."""
    tmp = job.folder.get(b"tmp")
    return bool(tmp) or any(each.place and each.place[0] == b"tmp" for each in job.outputs)


def _writable(folder: Folder, where: str) -> list[str] | None:
    """The paths that stay writable in an input root that is read-only by the property of its top
    directory; None if it is not. Refused where a part alone is read-only.
    """
    top = _read_only(folder)
    found: list[str] = []
    todo = [(where, folder, bool(top))]
    while todo:
        path, each, is_read_only = todo.pop()
        for name, node in each.items():
            if not isinstance(node, Folder) or (node.total is not None and node.total.is_plain):
                continue
            below, told = os.path.join(path, os.fsdecode(name)), _read_only(node)
            if told is False and is_read_only:
                found.append(below)
            elif told is True and not is_read_only:
                text = f"{below} alone is read-only in the input root, which cannot be kept"
                raise Refused("FAILED_PRECONDITION", f"{text}; the top directory can be")
            todo.append((below, node, is_read_only if told is None else told))
    return sorted(found) if top else None


def _read_only(folder: Folder) -> bool | None:
    """What the property says; None if there is none. Refused for properties that nobody knows."""
    told = None
    for name, value in () if folder.properties is None else folder.properties.named:
        if name != _READ_ONLY or value not in (b"true", b"false"):
            text = f"the property {name.decode()}={value.decode()} of a directory is not known"
            raise Refused("INVALID_ARGUMENT", text)
        told = value == b"true"
    return told
