# SPDX-License-Identifier: Apache-2.0
"""OCI images: an image layout, as a directory or a tar, and what `docker save` writes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from .. import sandbox
from ..errors import ImageError
from . import Process, _extract, _unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from ..sandbox import Path

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_LAYER = re.compile(
    r"application/vnd\.(oci\.image\.layer(\.nondistributable)?\.v1\.tar(\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs(\.foreign)?\.diff\.tar(\.gzip|\.zstd)?)\Z"
)
_REF = "org.opencontainers.image.ref.name"
_MAX_FILES = 100_000  # in a tar of blobs


def is_oci_image(path: Path) -> bool:
    """Whether it is a directory or a tar that holds an image."""
    if os.path.isdir(path):
        return os.path.isfile(os.path.join(path, "oci-layout"))
    try:
        with _Archive(os.fspath(path)) as archive:
            return archive.has("oci-layout") or archive.has("manifest.json")
    except (OSError, ImageError):
        return False


@contextlib.contextmanager
def unpack_oci_image(
    path: Path,
    ref: str | None = None,
    into: Path | None = None,
    max_size: int = _unpack.MAX_SIZE,
    max_members: int = _unpack.MAX_MEMBERS,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Unpacks an image: (rootfs_path, config). It is removed at the end of the `with`.

    ref: which image, where there are several: its name in the layout, or its docker tag.
    into: a directory that is made for it, and stays; the default is a temporary one.
    max_size: bytes of content of all layers; max_members: their files and directories.

    Sizes and digests are verified. ImageError for whatever is wrong.
    """
    opened = _Directory if os.path.isdir(path) else _Archive
    with opened(os.fspath(path)) as source, _unpack.target(max_size, max_members, into) as target:
        config, layers = _oci(source, ref) if source.has("oci-layout") else _docker(source, ref)
        for number, (blob, diff_id) in enumerate(layers):
            with _open(source, blob) as (fd, size):
                what = f"layer {number}, {blob.name}"
                target.extract(fd, what, length=size, digest=blob.digest, diff_id=diff_id)
        target.keep = into is not None
        yield target.path, config


def process(config: dict[str, Any]) -> Process:
    """What a config says about its command. ImageError."""
    words = _unpack.checked(config.get("config") or {}, dict, "config")
    env = dict(sandbox.BASE_ENVIRONMENT)
    for setting in _unpack.strings(words.get("Env"), "Env"):
        name, equals, value = setting.partition("=")
        _unpack.set_variable(env, name if equals else "", value)
    argv = [word for key in ("Entrypoint", "Cmd") for word in _unpack.strings(words.get(key), key)]
    cwd, user = _unpack.strings([words.get("WorkingDir") or "/", words.get("User") or ""], "config")
    return Process(argv, os.path.join("/", cwd), env, user)


# ---- where the blobs are ---------------------------------------------------------------------


class _Blob(NamedTuple):
    name: str
    digest: str = ""
    size: int | None = None


class _Directory:
    """An image layout on disk."""

    def __init__(self, path: str) -> None:
        self._path = path

    def has(self, name: str) -> bool:
        return os.path.lexists(os.path.join(self._path, name))

    def open(self, name: str) -> tuple[int, int]:
        """A descriptor that is where the file begins, and the size of the file."""
        fd = _unpack.open_file(self._path, name)
        return fd, os.fstat(fd).st_size

    def __enter__(self) -> _Directory:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class _Archive:
    """The same, or a docker-archive, as an uncompressed tar: files are found by their name."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = _unpack.open_archive(path)
        try:
            self._files, self._links = _index(self._fd)
        except _extract.Refused as error:
            raise ImageError(f"{path} is no uncompressed tar: {error}") from None
        finally:
            if not hasattr(self, "_links"):
                os.close(self._fd)

    def has(self, name: str) -> bool:
        return name in self._files

    def open(self, name: str) -> tuple[int, int]:
        found = self._files.get(self._links.get(name, name))  # docker links what it has twice
        if found is None:
            raise ImageError(f"{name}: there is no such file in the image")
        os.lseek(self._fd, found[0], os.SEEK_SET)  # one file is read at a time
        return os.dup(self._fd), found[1]

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)


class _Members(_extract.Archive):
    """Of a file; they are skipped without being read."""

    def __init__(self, fd: int) -> None:
        super().__init__(_extract.Part(fd, None))
        self._fd = fd

    def skip(self, size: int) -> None:
        self.offset += size
        os.lseek(self._fd, self.offset, os.SEEK_SET)


def _index(fd: int) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """What is in a tar: files as (offset, size), and links as the name they lead to."""
    files: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    archive = _Members(fd)
    for count, member in enumerate(archive):
        name = os.path.normpath(os.fsdecode(member.name))
        if count >= _MAX_FILES:
            raise _extract.Refused(f"it has more than {_MAX_FILES} members")
        if archive.offset + member.stored > os.fstat(fd).st_size:
            raise _extract.Refused("it is truncated")
        if member.kind == b"2":
            links[name] = os.path.normpath(
                os.path.join(os.path.dirname(name), os.fsdecode(member.link))
            )
        elif member.kind == b"1":
            links[name] = os.path.normpath(os.fsdecode(member.link))
        elif member.kind in _extract.REGULAR and member.map is None:
            files[name] = archive.offset, member.stored
    return files, links


_Source = _Directory | _Archive


@contextlib.contextmanager
def _open(source: _Source, blob: _Blob) -> Iterator[tuple[int, int]]:
    fd, size = source.open(blob.name)
    try:
        if blob.size not in (None, size):
            raise ImageError(f"{blob.name}: it has {size} bytes, and not {blob.size}")
        yield fd, size
    finally:
        os.close(fd)


def _read(source: _Source, blob: _Blob, kind: type = dict) -> Any:
    """A JSON document of the image."""
    with _open(source, blob) as (fd, size):
        data = _unpack.read_file(fd, size, blob.name)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if blob.digest not in ("", digest):
        raise ImageError(f"{blob.name}: it is not {blob.digest}, but {digest}")
    return _unpack.checked(_unpack.parse_json(data, blob.name), kind, blob.name)


# ---- which image -----------------------------------------------------------------------------

_Layers = Iterator[tuple[_Blob, str]]  # with the digest of what the blob decompresses to


def _oci(source: _Source, ref: str | None) -> tuple[dict[str, Any], _Layers]:
    version = _read(source, _Blob("oci-layout")).get("imageLayoutVersion")
    if version != "1.0.0":
        raise ImageError(f"the version of the image layout is {version!r}, not '1.0.0'")
    found = _choose(_read(source, _Blob("index.json")), ref)
    manifest = _read(source, _blob(found))
    if "manifests" in manifest:
        manifest = _read(source, _blob(_choose(manifest, None)))
    layers = []
    for layer in _unpack.checked(manifest.get("layers") or [], list, "layers"):
        blob = _blob(layer)
        kind = _unpack.checked(layer.get("mediaType"), str, "the mediaType of a layer")
        if not _LAYER.match(kind):
            raise ImageError(f"{blob.name}: a layer of an unknown mediaType: {kind!r}")
        layers.append(blob)
    config = _read(source, _blob(manifest.get("config")))
    return config, _with_diff_ids(config, layers)


def _choose(index: dict[str, Any], ref: str | None) -> Any:
    """The descriptor that is meant: by name, or else for this machine. ImageError."""
    found: list[tuple[str, str, Any]] = []
    for descriptor in _unpack.checked(index.get("manifests"), list, "manifests"):
        _unpack.checked(descriptor, dict, "a descriptor")
        notes = _unpack.checked(descriptor.get("annotations") or {}, dict, "annotations")
        words = _unpack.checked(descriptor.get("platform") or {}, dict, "platform")
        where = f"{words.get('os', '?')}/{words.get('architecture', '?')}"
        found.append((str(notes.get(_REF, "no name")), where, descriptor))
    machine = _ARCHITECTURES.get(platform.machine(), platform.machine())
    named = [each for each in found if ref is None or each[0] == ref]
    here = [each for each in named if each[1] == f"linux/{machine}"]
    chosen = named if len(named) == 1 else here
    if len(chosen) != 1:
        _ambiguous(ref, [f"{name} ({where})" for name, where, _ in found])
    return chosen[0][2]


def _docker(source: _Source, ref: str | None) -> tuple[dict[str, Any], _Layers]:
    found, names = [], []
    for image in _read(source, _Blob("manifest.json"), list):
        tags = _unpack.strings(_unpack.checked(image, dict, "an image").get("RepoTags"), "RepoTags")
        names += tags or ["no name"]
        if ref is None or ref in tags:
            found.append(image)
    if len(found) != 1:
        _ambiguous(ref, names)
    name = _unpack.checked(found[0].get("Config"), str, "Config")
    claimed = re.search(r"([0-9a-f]{64})(\.json)?\Z", name)
    config = _read(source, _Blob(name, f"sha256:{claimed[1]}" if claimed else ""))
    layers = [_Blob(layer) for layer in _unpack.strings(found[0].get("Layers"), "Layers")]
    return config, _with_diff_ids(config, layers)


def _ambiguous(ref: str | None, names: list[str]) -> NoReturn:
    wanted = "no ref is given" if ref is None else f"ref is {ref!r}"
    there = ", ".join(repr(name) for name in names[:20]) or "nothing"
    raise ImageError(f"{wanted}, which does not choose one image; there is {there}")


def _with_diff_ids(config: dict[str, Any], layers: list[_Blob]) -> _Layers:
    rootfs = _unpack.checked(config.get("rootfs"), dict, "rootfs")
    diff_ids = _unpack.strings(rootfs.get("diff_ids"), "diff_ids")
    if len(diff_ids) != len(layers):
        raise ImageError(f"there are {len(layers)} layers, and diff_ids of {len(diff_ids)}")
    return zip(layers, map(_digest, diff_ids), strict=True)


def _digest(digest: Any) -> str:
    if not _DIGEST.match(_unpack.checked(digest, str, "a digest")):
        raise ImageError(f"not a sha256 digest: {digest[:100]!r}")
    return str(digest)


def _blob(descriptor: Any) -> _Blob:
    """What a descriptor describes."""
    words = _unpack.checked(descriptor, dict, "a descriptor")
    digest = _digest(words.get("digest"))
    size = _unpack.checked(words.get("size"), int, "the size of a descriptor")
    return _Blob(f"blobs/sha256/{digest[7:]}", digest, size)
