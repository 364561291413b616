# SPDX-License-Identifier: Apache-2.0
"""A store of blobs in memory, as a server's is, and the messages of Actions in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from sandboxlib import _reapi
from sandboxlib.errors import RemoteError

Entries = Mapping[str, "bytes | tuple[bytes, bool] | str | Entries"]


class Blobs(dict[str, bytes]):
    """Blobs by their digests. calls: the names of the calls. bytes_sent: of all downloads."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.sent = 0

    def put(self, data: bytes) -> str:
        digest = _reapi.digest_of(data)
        self[digest] = data
        return digest

    def fetch(self, digests: Iterable[str]) -> dict[str, bytes]:
        self.calls.append("fetch")
        wanted = list(digests)
        missing = tuple(each for each in wanted if each not in self)
        if missing:
            raise RemoteError("memory://", "BatchReadBlobs", "NOT_FOUND", "no such blobs", missing)
        self.sent += sum(len(self[each]) for each in wanted)
        return {each: self[each] for each in wanted}

    def download(self, digest: str, write: Callable[[bytes], object]) -> None:
        self.calls.append("download")
        if digest not in self:
            raise RemoteError("memory://", "Read", "NOT_FOUND", "no such blob", (digest,))
        data = self[digest]
        self.sent += len(data)
        for at in range(0, len(data), 1 << 16):
            write(data[at : at + (1 << 16)])

    def upload(self, blobs: Mapping[str, object]) -> int:
        self.calls.append("upload")
        for digest, content in blobs.items():
            data = Path(content).read_bytes() if isinstance(content, str) else content
            assert isinstance(data, bytes)
            assert _reapi.digest_of(data) == digest
            self[digest] = data
        return len(blobs)

    # ---- messages ----

    def directory(self, entries: Entries) -> str:
        """The digest of a Directory: bytes are a file, a tuple one with its executable bit, a str a
        link, a mapping a directory.
        """
        files, directories, links = {}, {}, {}
        for text, value in entries.items():
            name = text.encode()
            if isinstance(value, bytes):
                files[name] = _reapi.file_node(name, self.put(value))
            elif isinstance(value, tuple):
                files[name] = _reapi.file_node(name, self.put(value[0]), value[1])
            elif isinstance(value, str):
                links[name] = _reapi.symlink_node(name, value.encode())
            else:
                directories[name] = _reapi.directory_node(name, self.directory(value))
        return self.put(_reapi.directory(files, directories, links))

    def action(
        self,
        argv: Iterable[str],
        root: str,
        outputs: Iterable[str] = (),
        *,
        directory: str = "",
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        platform: Iterable[tuple[str, str]] = (),
        properties: Iterable[str] = (),
        do_not_cache: bool = False,
        more: bytes = b"",
    ) -> str:
        """The digest of an Action. more: bytes of further fields of its Command."""
        variables = {"PATH": "/bin"} if env is None else env
        command = _reapi.command(
            [each.encode() for each in argv],
            {name.encode(): value.encode() for name, value in variables.items()},
            [each.encode() for each in outputs],
            directory.encode(),
            [each.encode() for each in properties],
        )
        pairs = _reapi.platform([(name.encode(), value.encode()) for name, value in platform])
        made = self.put(command + more)
        action = _reapi.action(made, root, timeout, b"", pairs, do_not_cache)
        return self.put(action)


def busybox() -> dict[str, bytes | tuple[bytes, bool] | str]:
    """The directory /bin of a root: a shell with its tools. A skip if the machine has none."""
    from lib.machine import require

    path = shutil.which("busybox")
    require(path, "there is no static busybox")
    assert path is not None
    content = Path(path).read_bytes()
    tools = "sh cat mkdir ls ln rm mv chmod sleep dd seq mkfifo env id touch yes kill wc head cp"
    tools += " true stat readlink uname setsid nc"
    return {"busybox": (content, True), **dict.fromkeys(tools.split(), "busybox")}
