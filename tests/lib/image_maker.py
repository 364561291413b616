# SPDX-License-Identifier: Apache-2.0
"""Makes tars and images byte by byte, also those that no honest program would write."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

END = bytes(1024)


def number(value: int, width: int) -> bytes:
    """A number as ustar writes it; in binary if it does not fit."""
    if 0 <= value < 8 ** (width - 1):
        return f"{value:0{width - 1}o}\0".encode()
    return bytes([0xFF if value < 0 else 0x80]) + (value % 256 ** (width - 1)).to_bytes(
        width - 1, "big"
    )


def header(
    name: bytes | str,
    kind: bytes = b"0",
    size: int = 0,
    link: bytes | str = b"",
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 1_000_000_000,
    tail: bytes = b"",
) -> bytes:
    name, link = os.fsencode(name), os.fsencode(link)
    block = bytearray(512)
    block[0 : len(name[:100])] = name[:100]
    block[100:108], block[108:116], block[116:124] = (number(n, 8) for n in (mode, uid, gid))
    block[124:136], block[136:148] = number(size, 12), number(mtime, 12)
    block[148:156], block[156:157] = b" " * 8, kind
    block[157 : 157 + len(link)] = link
    block[257:265] = b"ustar\x0000"
    block[500 - len(tail) : 500] = tail
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def file(name: bytes | str, data: bytes = b"", **options: Any) -> bytes:
    return header(name, size=len(data), **options) + padded(data)


def directory(name: bytes | str, mode: int = 0o755, **options: Any) -> bytes:
    return header(name, b"5", mode=mode, **options)


def symlink(name: bytes | str, link: bytes | str) -> bytes:
    return header(name, b"2", link=link, mode=0o777)


def hardlink(name: bytes | str, link: bytes | str) -> bytes:
    return header(name, b"1", link=link)


def pax(kind: bytes = b"x", **records: bytes | str) -> bytes:
    data = b""
    for key, value in records.items():
        rest = b" " + key.replace("__", ".").encode() + b"=" + os.fsencode(value) + b"\n"
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        data += str(length).encode() + rest
    return file("pax", data, kind=kind)


# ---- images ----------------------------------------------------------------------------------


def aci(path: Path, *members: bytes, manifest: Any = None, end: bytes = END) -> Path:
    """Write an app container image. The names of the members begin with rootfs/."""
    if manifest is None:
        manifest = {"acKind": "ImageManifest", "name": "example.com/x"}
    data = (
        manifest if isinstance(manifest, bytes) else file("manifest", json.dumps(manifest).encode())
    )
    path.write_bytes(gzip.compress(data + directory("rootfs") + b"".join(members) + end, 1))
    return path


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def encoded(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def config_of(layers: list[bytes], **options: Any) -> dict[str, Any]:
    return {
        "architecture": "amd64",
        "os": "linux",
        "config": options,
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
    }


class Layout:
    """An OCI image layout. A test may change its parts before it writes it, to make a bad one."""

    kind = "application/vnd.oci.image.layer.v1.tar"

    def __init__(self, *layers: bytes, blobs: list[bytes] | None = None, **options: Any) -> None:
        self.blobs = list(layers) if blobs is None else blobs
        self.config: Any = config_of(list(layers), **options)
        self.descriptors = [self.describe(blob, self.kind) for blob in self.blobs]
        self.version: Any = {"imageLayoutVersion": "1.0.0"}
        self.files: dict[str, bytes] = {}
        self.manifest: Any = None
        self.index: Any = None

    @staticmethod
    def describe(blob: bytes, kind: str = "") -> dict[str, Any]:
        return {"mediaType": kind, "digest": sha256(blob), "size": len(blob)}

    def whole(self) -> dict[str, bytes]:
        """The content of its files, by name."""
        config = encoded(self.config)
        if self.manifest is None:
            described = self.describe(config, "application/vnd.oci.image.config.v1+json")
            self.manifest = {"schemaVersion": 2, "config": described, "layers": self.descriptors}
        manifest = encoded(self.manifest)
        if self.index is None:
            self.index = {"schemaVersion": 2, "manifests": [self.describe(manifest)]}
        blobs = [*self.blobs, config, manifest]
        files = {f"blobs/sha256/{sha256(blob)[7:]}": blob for blob in blobs}
        files |= {"oci-layout": encoded(self.version), "index.json": encoded(self.index)}
        return files | self.files

    def directory(self, path: Path) -> Path:
        for name, data in self.whole().items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return path

    def tar(self, path: Path) -> Path:
        members = [file(name, data) for name, data in self.whole().items()]
        path.write_bytes(b"".join(members) + END)
        return path


def docker(path: Path, *layers: bytes, blobs: list[bytes] | None = None, **options: Any) -> Path:
    """Write a docker-archive."""
    config = encoded(config_of(list(layers), **options))
    names = [f"{number}.tar" for number in range(len(layers))]
    name = f"{sha256(config)[7:]}.json"
    manifest = [{"Config": name, "RepoTags": ["box:1"], "Layers": names}]
    members = [file(name, config), file("manifest.json", encoded(manifest))]
    members += map(file, names, layers if blobs is None else blobs)
    path.write_bytes(b"".join(members) + END)
    return path


def zstd(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard", reason="there is no zstandard")
    packed: bytes = zstandard.ZstdCompressor().compress(data)
    return packed
