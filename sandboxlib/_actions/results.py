# SPDX-License-Identifier: Apache-2.0
"""The ActionResult of a run that is over, and the upload of its outputs."""

from __future__ import annotations

from .. import _reapi
from .._inputs.snapshot import Folder, Leaf, Link
from ..result import Result
from .action import Job, Output
from .outcome import Outcome, Refused
from .outputs import Encoder, Reader
from .report import Times, fill_usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SIGNAL = 128  # a command that signal n ended has 128 + n, as shells and other workers have it


def exit_code(result: Result) -> int:
    """The exit status as the API has it."""
    return _SIGNAL - result.exit if result.exit < 0 else result.exit


def result_of(executor: Any, job: Job, result: Result, times: Times, upload: bool) -> Outcome:
    """Reads the outputs, sends what the server lacks, and makes the Outcome."""
    from .._remote.stubs import re_pb

    times.note("output_upload_start")
    site = executor.site
    message = re_pb.ActionResult(exit_code=exit_code(result))
    blobs: dict[str, Any] = {}
    for name, content in (("stdout", result.out), ("stderr", result.err)):
        _put_stream(message, name, content or b"", site.inline, blobs)
    upper = result.changes._upper
    assert upper is not None
    with result.changes, Reader(upper, site.where, executor.files, job.wanted) as reader:
        encoder = Encoder(job.wanted)
        for output in job.outputs:
            _put_output(message, job, output, reader, encoder, blobs)
        blobs |= encoder.messages
        blobs |= reader.blobs
        if upload and blobs:
            executor.source.upload(blobs)
        reader.publish()
    times.note("output_upload_completed")
    times.note("worker_completed")
    metadata = message.execution_metadata
    metadata.worker = site.name
    times.fill(metadata)
    fill_usage(metadata, result)
    return _outcome(job, result, message)


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


def _outcome(job: Job, result: Result, message: Any) -> Outcome:
    if result.timed_out:
        text = f"the command took longer than {job.seconds:g} s"
        return Outcome(message, "DEADLINE_EXCEEDED", text)
    if "output" in result.limits_hit:
        text = f"the command wrote more than {job.site.max_output} bytes of output"
        return Outcome(message, "RESOURCE_EXHAUSTED", text)
    may_be_cached = not job.action.do_not_cache and message.exit_code == 0
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
    if isinstance(node, Leaf):
        made = message.output_files.add(path=output.path, is_executable=node.is_executable)
        fill_digest(made.digest, node.digest)
    elif isinstance(node, Link):
        made = message.output_symlinks.add(path=output.path, target=_text(node.target))
        if len(output.kinds) == 1:  # for clients of versions before output_paths
            each = (
                "output_directory_symlinks"
                if "directory" in output.kinds
                else "output_file_symlinks"
            )
            getattr(message, each).add(path=output.path, target=_text(node.target))
    else:
        made = message.output_directories.add(path=output.path)
        if job.trees:
            tree = encoder.tree(node)
            digest = _reapi.digest_of(tree)
            blobs[digest] = tree
            fill_digest(made.tree_digest, digest)
        if job.directories:
            _put_directory(made, encoder.digest(node))
        return
    if (extra := encoder.extra(node)) is not None:
        made.node_properties.ParseFromString(extra)


def _kind(is_directory: bool) -> str:
    return "directory" if is_directory else "file"


def _put_directory(made: Any, digest: str) -> None:
    """OutputDirectory.root_directory_digest, field 5, which the stubs of earlier versions lack: as
    an unknown field it is in the bytes of the message all the same.
    """
    encoded = _reapi.output_directory(digest)
    made.MergeFromString(encoded)


def _text(target: bytes) -> str:
    try:
        return target.decode()
    except UnicodeDecodeError:
        text = f"a symbolic link leads to {target!r}, which is not UTF-8: no message can have it"
        raise Refused("FAILED_PRECONDITION", text) from None
