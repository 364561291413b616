# SPDX-License-Identifier: Apache-2.0
"""Results as ActionResults and back, and what of a server is refused before anything is written."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.memory_server import MemoryServer, memory_server
from lib.reapi import stubs

from sandboxlib import Command, File, Outputs, RemoteError, Result, SetupError, Store, _reapi
from sandboxlib._inputs.snapshot import leaf_of

pb = stubs()
from sandboxlib._remote import results  # noqa: E402
from sandboxlib._remote.server import Server  # noqa: E402


@pytest.fixture(scope="module")
def running() -> Iterator[MemoryServer]:
    with memory_server() as running:
        yield running


@pytest.fixture
def there(running: MemoryServer) -> MemoryServer:
    running.blobs.clear()
    running.results.clear()
    running.calls.clear()
    return running


@pytest.fixture
def server(there: MemoryServer) -> Iterator[Server]:
    with Server(there.url) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def made(
    exit: int = 0, out: bytes | None = b"out", err: bytes | None = b"err", **outputs: Any
) -> Result:
    result = Result(exit, out, err, executor="chroot", isolation={"network": "isolated"})
    if outputs:
        result._outputs = Outputs(**outputs)
    return result


def again(
    result: Result, command: Command, there: MemoryServer, server: Server, store: Store
) -> results.Answer:
    """What another machine finds of a result."""
    written = results.action_result(result, command.cwd, "here")
    assert written is not None
    message, blobs = written
    for digest, source in blobs.items():
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        assert _reapi.digest_of(content) == digest
        there.blobs[digest] = content
    message = pb.ActionResult.FromString(message.SerializeToString())
    return results.answer_of(server, message, command, command.cwd, store)


def test_what_was_written_is_what_is_read(
    there: MemoryServer, server: Server, store: Store, tmp_path: Path
) -> None:
    large = os.urandom(1 << 20)
    (tmp_path / "large").write_bytes(large)
    command = Command(["cc"], "/src", outputs=["a.o", "/out", "lib*", "/etc/none", "link"])
    files = {
        "/src/a.o": File(b"object"),
        "/out/bin/run": File(b"#!", executable=True),
        "/out/large": File(tmp_path / "large", executable=False),
        "/out/same": File(b"object"),
        "/src/lib.a": File(b""),
    }
    links = {"/src/link": "/nowhere", "/out/bin/link": "run"}
    directories = ("/out", "/out/bin", "/out/empty", "/src/lib.d")
    result = made(files=files, links=links, directories=directories, missing=("/etc/none",))
    answer = again(result, command, there, server, store)
    assert (answer.exit, answer.stdout, answer.stderr) == (0, b"out", b"err")
    assert answer.isolation == {"network": "isolated"}
    found = answer.outputs
    assert {path: file.read_bytes() for path, file in found.items()} == {
        path: file.read_bytes() for path, file in files.items()
    }
    assert {path for path, file in found.items() if file.executable} == {"/out/bin/run"}
    assert dict(found.links) == links
    assert set(found.directories) == set(directories)
    assert found.missing == ("/etc/none",)
    assert leaf_of(found["/out/large"]).digest == _reapi.digest_of(large)
    assert there.calls.count("BatchReadBlobs") == 2  # the second is for what lies in directories
    assert there.calls.count("Read") == 1


def test_outputs_that_are_no_directories_take_one_call(
    there: MemoryServer, server: Server, store: Store
) -> None:
    command = Command(["cc"], outputs=["/out/*"])
    files = {f"/out/{number}": File(b"%d" % number) for number in range(100)}
    assert len(again(made(files=files), command, there, server, store).outputs) == 100
    assert there.calls == ["GetCapabilities", "BatchReadBlobs"]
    assert again(made(out=b"", err=None), Command(["cc"]), there, server, store).stdout == b""
    assert there.calls.count("BatchReadBlobs") == 1


def test_a_signal_and_the_usage_are_told(there: MemoryServer, server: Server, store: Store) -> None:
    result = made(-9)
    result.limits_hit = ("memory",)
    result._rusage = struct.pack("18q", *range(1, 19))
    message = results.action_result(result, None, "here")
    assert message is not None
    assert message[0].exit_code == 137
    answer = again(result, Command(["cc"]), there, server, store)
    assert (answer.exit, answer.limits_hit) == (-9, ("memory",))
    assert result.usage is not None
    assert answer.usage is not None
    assert answer.usage == result.usage
    assert again(made(9), Command(["cc"]), there, server, store).exit == 9


@pytest.mark.parametrize("kind", ["files", "links", "directories", "target"])
def test_a_name_that_is_not_utf8_cannot_be_written(kind: str) -> None:
    name = os.fsdecode(b"/out/\xff")
    values: dict[str, Any] = {
        "files": {"files": {name: File(b"")}},
        "links": {"links": {name: "a"}},
        "directories": {"directories": (name,)},
        "target": {"links": {"/out/a": name}},
    }[kind]
    assert results.action_result(made(**values), None, "here") is None


def test_more_outputs_than_a_message_takes_cannot_be_written() -> None:
    files = {f"/out/{number:0200}": File(b"") for number in range(15_000)}
    assert results.action_result(made(files=files), None, "here") is None


def test_what_a_wider_pattern_brought_is_left_out(
    there: MemoryServer, server: Server, store: Store
) -> None:
    command = Command(["cc"], outputs=["/out/*.o", "/lib/*.a"])
    files = {"/out/a.o": File(b"1"), "/out/a.c": File(b"2"), "/out/sub/b.o": File(b"3")}
    result = made(files=files, directories=("/out", "/out/sub"))
    written = results.action_result(result, None, "here")
    assert written is not None
    message, blobs = written
    there.blobs |= {digest: each for digest, each in blobs.items() if isinstance(each, bytes)}
    answer = results.answer_of(server, message, command, None, store, declared=["/out", "/lib"])
    assert list(answer.outputs) == ["/out/a.o"]
    assert answer.outputs.missing == ("/lib/*.a",)


def test_a_server_may_put_contents_into_the_message(
    there: MemoryServer, server: Server, store: Store
) -> None:
    message = pb.ActionResult(stdout_raw=b"out", stderr_raw=b"err")
    _fill(message.stderr_digest, _reapi.digest_of(b"err"))
    _file(message, "a", b"content").contents = b"content"
    answer = results.answer_of(server, message, DECLARING, "/src", store)
    assert (answer.stdout, answer.stderr) == (b"out", b"err")
    assert answer.outputs["/src/a"].read_bytes() == b"content"
    assert not there.calls


def test_streams_that_nobody_wants_are_not_fetched(
    there: MemoryServer, server: Server, store: Store
) -> None:
    written = results.action_result(made(), None, "here")
    assert written is not None
    results.answer_of(server, written[0], Command(["cc"]), None, store, streams=())
    assert not there.calls


# ---- hostile answers -------------------------------------------------------------------------

DECLARING = Command(["cc"], "/src", outputs=["a", "d", "/out/*", "b/**"])
EXABYTES = "0" * 64 + "/" + str(1 << 62)


def _fill(message: Any, digest: str) -> None:
    name, _, size = digest.partition("/")
    message.hash, message.size_bytes = name, int(size)


def _file(message: Any, path: str, content: bytes = b"1", digest: str = "") -> Any:
    made = message.output_files.add(path=path)
    _fill(made.digest, digest or _reapi.digest_of(content))
    return made


def _directory(message: Any, path: str, there: MemoryServer, tree: bytes) -> None:
    made = message.output_directories.add(path=path)
    _fill(made.tree_digest, there.put(tree))


def _named(*names: str) -> Callable[[Any, MemoryServer], None]:
    def fill(message: Any, there: MemoryServer) -> None:
        for name in names:
            _file(message, name)

    return fill


def _in_tree(**fields: Any) -> Callable[[Any, MemoryServer], None]:
    """A directory with these nodes, each a name or several."""

    def fill(message: Any, there: MemoryServer) -> None:
        folder = pb.Directory()
        for name in fields.get("files", ()):
            _fill(folder.files.add(name=name).digest, there.put(b"1"))
        for name in fields.get("links", ()):
            folder.symlinks.add(name=name, target="t")
        for name in fields.get("directories", ()):
            _fill(folder.directories.add(name=name).digest, _reapi.digest_of(b""))
        children = fields.get("children", ())
        _directory(message, "d", there, pb.Tree(root=folder, children=children).SerializeToString())

    return fill


def _deep(message: Any, there: MemoryServer) -> None:
    folders = [pb.Directory()]
    for _ in range(1000):
        above = pb.Directory()
        _fill(
            above.directories.add(name="d").digest,
            _reapi.digest_of(folders[-1].SerializeToString()),
        )
        folders.append(above)
    tree = pb.Tree(root=folders[-1], children=folders[:-1])
    _directory(message, "d", there, tree.SerializeToString())


def _wide(message: Any, there: MemoryServer) -> None:
    """Few messages, each of which names the next one ten times."""
    folders = [pb.Directory()]
    for _ in range(30):
        above = pb.Directory()
        for name in range(10):
            digest = _reapi.digest_of(folders[-1].SerializeToString())
            _fill(above.directories.add(name=str(name)).digest, digest)
        folders.append(above)
    tree = pb.Tree(root=folders[-1], children=folders[:-1])
    _directory(message, "d", there, tree.SerializeToString())


def _of_exabytes(message: Any, there: MemoryServer) -> None:
    _file(message, "a", digest=EXABYTES)


def _stream(message: Any, there: MemoryServer) -> None:
    _fill(message.stdout_digest, EXABYTES)


def _tree_of_exabytes(message: Any, there: MemoryServer) -> None:
    _fill(message.output_directories.add(path="d").tree_digest, EXABYTES)


def _digest(name: str, size: int) -> Callable[[Any, MemoryServer], None]:
    def fill(message: Any, there: MemoryServer) -> None:
        made = message.output_files.add(path="a")
        made.digest.hash, made.digest.size_bytes = name, size

    return fill


def _no_digest(message: Any, there: MemoryServer) -> None:
    message.output_files.add(path="a")


def _no_tree(message: Any, there: MemoryServer) -> None:
    _directory(message, "d", there, b"this is no message")


def _link(path: str, target: str) -> Callable[[Any, MemoryServer], None]:
    return lambda message, there: message.output_symlinks.add(path=path, target=target)


def _wrong_raw(message: Any, there: MemoryServer) -> None:
    message.stdout_raw = b"other"
    _fill(message.stdout_digest, _reapi.digest_of(b"out"))


def _wrong_content(message: Any, there: MemoryServer) -> None:
    _file(message, "a", b"1").contents = b"2"


def _two_targets(message: Any, there: MemoryServer) -> None:
    message.output_symlinks.add(path="a", target="1")
    message.output_file_symlinks.add(path="a", target="2")


def _below_a_link(message: Any, there: MemoryServer) -> None:
    message.output_symlinks.add(path="b/a", target="/etc")
    _file(message, "b/a/passwd")


HOSTILE: dict[str, Callable[[Any, MemoryServer], Any]] = {
    "upwards": _named("../etc/passwd"),
    "upwards inside": _named("b/../../etc/passwd"),
    "absolute": _named("/etc/passwd"),
    "not declared": _named("c"),
    "an empty name": _named("b//x"),
    "a dot": _named("b/./x"),
    "nothing": _named(""),
    "a slash at the end": _named("b/x/"),
    "the root": _named("/"),
    "a NUL": _named("b/x\0y"),
    "too long": _named("b/" + "x/" * 3000 + "x"),
    "twice": lambda message, there: (_file(message, "a"), _file(message, "a", b"2")),
    "twice as another name": lambda m, there: (_file(m, "a"), _file(m, "/src/a", b"2")),
    "a file and a link": lambda m, there: (
        _file(m, "a"),
        m.output_symlinks.add(path="a", target="b"),
    ),
    "two targets": _two_targets,
    "below a file": _named("b/a", "b/a/c"),
    "below a link": _below_a_link,
    "a link to nothing": _link("a", ""),
    "a link with a NUL": _link("a", "x\0y"),
    "no digest": _no_digest,
    "a hash upwards": _digest("../../../etc/passwd", 1),
    "a hash that is short": _digest("00", 1),
    "a negative size": _digest("0" * 64, -1),
    "exabytes": _of_exabytes,
    "exabytes of stdout": _stream,
    "exabytes of a tree": _tree_of_exabytes,
    "no tree": _no_tree,
    "a tree upwards": _in_tree(files=[".."]),
    "a tree with a slash": _in_tree(files=["../../etc/passwd"]),
    "a tree with an empty name": _in_tree(links=[""]),
    "a tree with a NUL": _in_tree(links=["x\0"]),
    "a tree with a name twice": _in_tree(files=["x", "x"]),
    "a tree with a name of two kinds": _in_tree(files=["x"], links=["x"]),
    "a tree that lacks a directory": _in_tree(directories=["x"]),
    "a deep tree": _deep,
    "a wide tree": _wide,
    "stdout that is another": _wrong_raw,
    "a content that is another": _wrong_content,
}


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: name.replace(" ", "-"))
def test_a_hostile_answer_is_refused_before_anything_is_written(
    name: str, there: MemoryServer, server: Server, store: Store
) -> None:
    message = pb.ActionResult()
    HOSTILE[name](message, there)
    with pytest.raises(RemoteError) as caught:
        results.answer_of(server, message, DECLARING, "/src", store)
    assert caught.value.code == ("RESOURCE_EXHAUSTED" if "exa" in name else "DATA_LOSS") or (
        name == "exabytes of a tree"
    )
    assert not os.path.lexists(store.directory) or not any(
        files for _, _, files in os.walk(store.directory)
    )


def test_a_blob_that_is_another_is_refused(
    there: MemoryServer, server: Server, store: Store
) -> None:
    for size in (10, 1 << 20):  # in a batch, and as a stream into the store
        message = pb.ActionResult()
        digest = _reapi.digest_of(bytes(size))
        _file(message, "a", digest=digest)
        there.blobs[digest] = b"x" * size
        with pytest.raises(RemoteError) as caught:
            results.answer_of(server, message, DECLARING, "/src", store)
        assert caught.value.code == "DATA_LOSS"
        assert caught.value.digests == (digest,)
    assert not list(Path(store.directory).glob("outputs/*"))


def test_blobs_that_are_gone_are_named(there: MemoryServer, server: Server, store: Store) -> None:
    for size in (10, 1 << 20):
        message = pb.ActionResult()
        digest = _reapi.digest_of(bytes(size))
        _file(message, "a", digest=digest)
        with pytest.raises(RemoteError) as caught:
            results.answer_of(server, message, DECLARING, "/src", store)
        assert (caught.value.code, caught.value.digests) == ("NOT_FOUND", (digest,))


def test_a_store_that_cannot_be_written_is_an_error_of_set_up(
    there: MemoryServer, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    message = pb.ActionResult()
    _file(message, "a", digest=there.put(bytes(1 << 20)))
    with pytest.raises(SetupError) as caught:
        results.answer_of(server, message, DECLARING, "/src", Store(tmp_path / "file" / "store"))
    assert caught.value.errno == errno.ENOTDIR
