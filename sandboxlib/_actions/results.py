# SPDX-License-Identifier: Apache-2.0
"""The ActionResult of a run that is over, and the upload of its outputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from .. import _reapi
from .._inputs.outputs import Outputs
from .._inputs.snapshot import Folder, Leaf, Link, Node, leaf_of, merged
from .._remote.metadata import exit_code
from ..result import Result
from .action import Job, Output
from .outcome import Outcome
from .outputs import Encoder, Reader, utf8
from .report import Times, fill_usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from threading import Event
    from typing import Any

    from .._runs.upper import Upper
    from .ours import OurJob


def result_of(
    executor: Any, job: Job, result: Result, times: Times, upload: bool, stop: Event | None
) -> Outcome:
    """Reads the outputs, sends what the server lacks, and makes the Outcome. Raises Stopped."""
    times.note("output_upload_start")
    message, blobs = _begun(executor, result)
    upper = result.changes._upper
    assert upper is not None
    with result.changes, _reader(upper, job, executor, stop) as reader:
        encoder = Encoder(job.wanted)
        for output in job.outputs:
            _put_output(message, job, output, reader, encoder, blobs)
        blobs |= encoder.messages
        blobs |= reader.blobs
        if upload and blobs:
            executor.source.upload(blobs)
        reader.publish()
    _finish(executor, message, result, times)
    return _outcome(job, result, message)


def _reader(upper: Upper, job: Job, executor: Any, stop: Event | None) -> Reader:
    return Reader(upper, job.site.where, executor.files, job.wanted, stop)


def _begun(executor: Any, result: Result) -> tuple[Any, dict[str, Any]]:
    """A message with the exit status and the streams, and the blobs of these."""
    from .._remote.stubs import re_pb

    message = re_pb.ActionResult(exit_code=exit_code(result))
    blobs: dict[str, Any] = {}
    for name, content in (("stdout", result.out), ("stderr", result.err)):
        _put_stream(message, name, content or b"", executor.site.inline, blobs)
    return message, blobs


def _finish(executor: Any, message: Any, result: Result, times: Times) -> None:
    times.note("output_upload_completed")
    times.note("worker_completed")
    metadata = message.execution_metadata
    metadata.worker = executor.site.name
    times.fill(metadata)
    fill_usage(metadata, result)


def result_of_ours(
    executor: Any, job: OurJob, result: Result, times: Times, upload: bool
) -> Outcome:
    """The same for an Action of ours, whose outputs the Result has. A path outside of the working
    directory is absolute.
    """
    times.note("output_upload_start")
    message, blobs = _begun(executor, result)
    encoder = Encoder(frozenset())
    above = job.cwd.rstrip("/") + "/"
    outputs, tops = result.outputs, _tops(result.outputs.directories)
    nodes: dict[str, dict[str, Node]] = {path: {} for path in tops}
    for path, node in _nodes(outputs):
        utf8("an output has the path", os.fsencode(path))
        top = next((each for each in tops if path.startswith(each + "/")), None)
        if isinstance(node, Leaf):
            blobs[node.digest] = node.source
        if top is not None:
            nodes[top][path[len(top) + 1 :]] = node
        elif not isinstance(node, Folder):
            put_node(message, path.removeprefix(above), node)
    for path, found in nodes.items():
        made = message.output_directories.add(path=path.removeprefix(above))
        tree = encoder.tree(merged(found, lambda node: node))  # type: ignore[arg-type, return-value]
        blobs[digest := _reapi.digest_of(tree)] = tree
        fill_digest(made.tree_digest, digest)
    if upload and blobs:
        executor.source.upload(blobs)
    _finish(executor, message, result, times)
    return _outcome(job, result, message)


def _tops(directories: Iterable[str]) -> list[str]:
    """Those directories that lie in no other one of them."""
    tops: list[str] = []
    for path in sorted(directories, key=lambda path: path.split("/")):
        if not tops or not path.startswith(tops[-1] + "/"):
            tops.append(path)
    return tops


def _nodes(outputs: Outputs) -> Iterator[tuple[str, Node]]:
    for path in outputs.directories:
        yield path, Folder()
    for path, file in outputs.items():
        yield path, leaf_of(file)
    for path, target in outputs.links.items():
        yield path, Link(os.fsencode(target))


def not_begun(executor: Any, code: int, text: str, times: Times) -> Outcome:
    """The Outcome of a command whose program cannot be executed: its exit status, as a shell has
    it, and why.
    """
    from .._remote.stubs import re_pb

    times.note("worker_completed")
    message = re_pb.ActionResult(exit_code=code, stderr_raw=f"{text}\n".encode())
    message.execution_metadata.worker = executor.site.name
    times.fill(message.execution_metadata)
    return Outcome(message)


def _outcome(job: Job | OurJob, result: Result, message: Any) -> Outcome:
    if result.timed_out:
        text = f"the command took longer than {job.seconds:g} s"
        return Outcome(message, "DEADLINE_EXCEEDED", text)
    if "output" in result.limits_hit:
        text = f"the command wrote more than {job.site.max_output} bytes of output"
        return Outcome(message, "RESOURCE_EXHAUSTED", text)
    may_be_cached = not job.action.do_not_cache and result.ok
    return Outcome(message, may_be_cached=may_be_cached)


def _put_stream(
    message: Any, name: str, content: bytes, inline: int, blobs: dict[str, Any]
) -> None:
    if len(content) <= inline:
        setattr(message, f"{name}_raw", content)
        return
    digest = _reapi.digest_of(content)
    blobs[digest] = content
    fill_digest(getattr(message, f"{name}_digest"), digest)


def fill_digest(message: Any, digest: str) -> None:
    name, _, size = digest.partition("/")
    message.hash, message.size_bytes = name, int(size)


def _put_output(
    message: Any,
    job: Job,
    output: Output,
    reader: Reader,
    encoder: Encoder,
    blobs: dict[str, Any],
) -> None:
    """Adds what lies at a path. Nothing, or something of another kind, is no output."""
    node = None if output.place is None else reader.read(output.place, job.folder)
    is_directory = isinstance(node, Folder)
    if node is None or (not isinstance(node, Link) and _kind(is_directory) not in output.kinds):
        return
    if isinstance(node, Folder):
        made = message.output_directories.add(path=output.path)
        if job.trees:
            tree = encoder.tree(node)
            blobs[digest := _reapi.digest_of(tree)] = tree
            fill_digest(made.tree_digest, digest)
        if job.directories:
            _put_directory(made, encoder.digest(node))
        return
    made = put_node(message, output.path, node)
    if isinstance(node, Link) and len(output.kinds) == 1:  # for clients of before output_paths
        kind = "directory" if "directory" in output.kinds else "file"
        getattr(message, f"output_{kind}_symlinks").add(path=output.path, target=made.target)
    if (extra := encoder.extra(node)) is not None:
        made.node_properties.ParseFromString(extra)


def put_node(message: Any, path: str, node: Leaf | Link) -> Any:
    """Adds a file or a link to an ActionResult."""
    if isinstance(node, Link):
        return message.output_symlinks.add(
            path=path, target=utf8("a symbolic link leads to", node.target)
        )
    made = message.output_files.add(path=path, is_executable=node.is_executable)
    fill_digest(made.digest, node.digest)
    return made


def _kind(is_directory: bool) -> str:
    return "directory" if is_directory else "file"


def _put_directory(made: Any, digest: str) -> None:
    """OutputDirectory.root_directory_digest, field 5, which the stubs of earlier versions lack: as
    an unknown field it is in the bytes of the message all the same.
    """
    encoded = _reapi.output_directory(digest)
    made.MergeFromString(encoded)
