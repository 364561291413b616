# SPDX-License-Identifier: Apache-2.0
"""The JSON documents of an image, and the files that they name.

Part of the child. The parent uses the checks of single values too, for the child's answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import stat

from .blobs import File, Part, Refused, shown
from .tar import REGULAR, Archive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

MAX_JSON = 4 << 20  # bytes of a document; registries have the same limit for manifests
MAX_NESTING = 100
MAX_FILES = 100_000  # in a tar of blobs
MAX_LAYERS = 500  # the limit of overlayfs; Docker has 125
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_LAYER = re.compile(
    r"application/vnd\.(oci\.image\.layer(\.nondistributable)?\.v1\.tar(\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs(\.foreign)?\.diff\.tar(\.gzip|\.zstd)?)\Z"
)
_REF = "org.opencontainers.image.ref.name"
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # a FIFO would block


# ---- values ----------------------------------------------------------------------------------


def parse_json(data: bytes, what: str) -> Any:
    """Parse JSON. Raises Refused if it is none, has a key twice, or is nested too deep."""
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_float,
        )
    except (ValueError, RecursionError) as error:
        raise Refused(f"{what} is no JSON: {type(error).__name__}") from None
    except Refused as error:
        raise Refused(f"{what} is no JSON: {error}") from None
    _check_nesting(value, what)
    return value


def _check_nesting(value: Any, what: str) -> None:
    level: list[Any] = [[value]]
    depth = 0
    while level:
        inner: list[Any] = []
        for outer in level:
            inner += outer.values() if isinstance(outer, dict) else outer
        level = [each for each in inner if isinstance(each, (dict, list))]
        depth += 1
        if depth > MAX_NESTING:
            raise Refused(f"{what} is nested more than {MAX_NESTING} levels deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise Refused(f"the key {shown(key)} is there twice")
            seen.add(key)
    return mapping


def _integer(text: str) -> int:
    if len(text) > 20:  # more than 64 bits; int() takes quadratic time in some versions of Python
        raise Refused(f"a number of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise Refused(f"no finite number: {shown(text)}")
    return value


def checked(value: Any, kind: type, what: str) -> Any:
    """Return the value. Raises Refused if it is not of that type."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Refused(f"{what} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def strings(value: Any, what: str) -> list[str]:
    """Return a list of str that can be arguments of a command; None means an empty list. Raises
    Refused.
    """
    values = checked([] if value is None else value, list, what)
    for each in values:
        try:
            os.fsencode(checked(each, str, f"a word of {what}"))
        except UnicodeEncodeError:
            raise Refused(f"a word of {what} cannot be encoded: {shown(each)}") from None
        if "\0" in each:
            raise Refused(f"a word of {what} contains a NUL byte: {shown(each)}")
    return list(values)


def oci_account(config: dict[str, Any]) -> str:
    """The user of the command of an OCI image, as "USER[:GROUP]" or ""."""
    settings = checked(config.get("config") or {}, dict, "config")
    return strings([settings.get("User") or ""], "config")[0]


def aci_account(manifest: dict[str, Any]) -> str:
    """The user of the command of an app container image, as "USER:GROUP"."""
    app = checked(manifest.get("app") or {}, dict, "app")
    user, group = strings([app.get("user") or "0", app.get("group") or "0"], "app")
    if user.startswith("/") or group.startswith("/") or ":" in user + group:
        both = f"user {shown(user[:100])} and group {shown(group[:100])}"
        raise Refused(f"{both} are no names or numbers")
    return f"{user}:{group}"


def aci_manifest(data: bytes | None) -> dict[str, Any]:
    """Parse the manifest of an app container image; data: None if it has none."""
    if data is None:
        raise Refused("it has no manifest")
    manifest: dict[str, Any] = checked(parse_json(data, "the manifest"), dict, "the manifest")
    for key in ("dependencies", "pathWhitelist"):
        if manifest.get(key):
            raise Refused(f"the manifest has {key}, which are not supported")
    return manifest


# ---- files -----------------------------------------------------------------------------------


def open_regular(path: str, name: str) -> File:
    """Open a file. Raises Refused if it is no regular file. name: for messages."""
    try:
        fd = os.open(path, READ)
    except OSError as error:
        raise Refused(f"{shown(name)}: {error.strerror}") from error
    at = os.fstat(fd)
    if not stat.S_ISREG(at.st_mode):
        os.close(fd)
        raise Refused(f"{shown(name)} is no regular file")
    return File(name, fd, 0, at.st_size)


class Directory:
    """An image layout on disk. It is the root directory of this process by now."""

    def has(self, name: str) -> bool:
        return os.path.lexists(f"/{name}")

    def open(self, name: str) -> File:
        return open_regular(f"/{name}", name)


class Tar:
    """An image layout or a docker-archive as an uncompressed tar. It has an index of the names."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._files: dict[str, tuple[int, int]] = {}  # (offset, size)
        self._links: dict[str, str] = {}
        try:
            self._index()
        except Refused as error:
            raise Refused(f"it is no uncompressed tar: {error}") from None

    def _index(self) -> None:
        size = os.fstat(self._fd).st_size
        archive = _Members(self._fd, size)
        for count, member in enumerate(archive):
            name = posixpath.normpath(os.fsdecode(member.name))
            link = os.fsdecode(member.link)
            if count >= MAX_FILES:
                raise Refused(f"it has more than {MAX_FILES} members")
            if archive.offset + member.stored > size:
                raise Refused("it is truncated")
            if member.kind == b"2":
                link = posixpath.join(posixpath.dirname(name), link)
            if member.kind in (b"1", b"2"):
                self._links[name] = posixpath.normpath(link)
            elif member.kind in REGULAR and member.map is None:
                self._files[name] = archive.offset, member.stored

    def has(self, name: str) -> bool:
        return name in self._files

    def open(self, name: str) -> File:
        position = self._files.get(self._links.get(name, name))  # docker links repeated layers
        if position is None:
            raise Refused(f"{shown(name)}: there is no such file in the image")
        return File(name, self._fd, *position)


class _Members(Archive):
    """The members of a tar in a file. It skips their content without reading it."""

    def __init__(self, fd: int, size: int) -> None:
        self._file = File("", fd, 0, size)
        super().__init__(Part(self._file))

    def skip(self, size: int) -> None:
        self.offset += size
        self._file.offset = self.offset
        self.stream = Part(self._file)


Source = Directory | Tar


class Blob:
    """A file of the image. digest and size: as its descriptor says; "" and None if not known."""

    def __init__(self, name: str, digest: str = "", size: int | None = None) -> None:
        self.name, self.digest, self.size = name, digest, size

    def open(self, source: Source) -> File:
        file = source.open(self.name)
        if self.size not in (None, file.size):
            raise Refused(f"{shown(self.name)}: it has {file.size} bytes, and not {self.size}")
        return file

    def read(self, source: Source, kind: type = dict) -> Any:
        """Read and parse it as JSON. Raises Refused if it is not of that kind."""
        file = self.open(source)
        data = file.whole(MAX_JSON)
        if isinstance(source, Directory):
            os.close(file.fd)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if self.digest not in ("", digest):
            raise Refused(f"{shown(self.name)}: it is not {self.digest}, but {digest}")
        return checked(parse_json(data, shown(self.name)), kind, shown(self.name))


# ---- which image -----------------------------------------------------------------------------


class Layout:
    """One image of a source: its config, and its layers with their diff_ids, which are the digests
    of the decompressed layers. Raises Refused, also if ref does not choose one image.
    """

    config: dict[str, Any]
    layers: list[tuple[Blob, str]]

    def __init__(self, source: Source, ref: str | None) -> None:
        layers = (self._oci if source.has("oci-layout") else self._docker)(source, ref)
        rootfs = checked(self.config.get("rootfs"), dict, "rootfs")
        diff_ids = checked(rootfs.get("diff_ids") or [], list, "diff_ids")
        if len(diff_ids) != len(layers):
            raise Refused(f"there are {len(layers)} layers, and diff_ids of {len(diff_ids)}")
        self.layers = list(zip(layers, map(_digest, diff_ids), strict=True))

    def _oci(self, source: Source, ref: str | None) -> list[Blob]:
        version = Blob("oci-layout").read(source).get("imageLayoutVersion")
        if version != "1.0.0":
            raise Refused(f"the version of the image layout is {shown(str(version))}, not '1.0.0'")
        manifest = _blob(_choose(Blob("index.json").read(source), ref)).read(source)
        if "manifests" in manifest:
            manifest = _blob(_choose(manifest, None)).read(source)
        layers = []
        for layer in _counted(checked(manifest.get("layers") or [], list, "layers")):
            blob = _blob(layer)
            kind = checked(layer.get("mediaType"), str, "the mediaType of a layer")
            if not _LAYER.match(kind):
                raise Refused(f"{blob.name}: a layer of an unknown mediaType: {shown(kind)}")
            layers.append(blob)
        self.config = _blob(manifest.get("config")).read(source)
        return layers

    def _docker(self, source: Source, ref: str | None) -> list[Blob]:
        chosen, names = [], []
        for image in Blob("manifest.json").read(source, list):
            tags = strings(checked(image, dict, "an image").get("RepoTags"), "RepoTags")
            names += tags or ["no name"]
            if ref is None or ref in tags:
                chosen.append(image)
        if len(chosen) != 1:
            _ambiguous(ref, names)
        name = checked(chosen[0].get("Config"), str, "Config")
        layers = strings(_counted(checked(chosen[0].get("Layers") or [], list, "Layers")), "Layers")
        claimed = re.search(r"([0-9a-f]{64})(\.json)?\Z", name[-69:])
        self.config = Blob(name, f"sha256:{claimed[1]}" if claimed else "").read(source)
        return [Blob(layer) for layer in layers]


def _choose(index: dict[str, Any], ref: str | None) -> Any:
    """Choose a descriptor by name, and if several are left, the one for this machine.

    Raises Refused if that leaves none or several.
    """
    candidates: list[tuple[str, str, Any]] = []
    for descriptor in checked(index.get("manifests"), list, "manifests"):
        checked(descriptor, dict, "a descriptor")
        notes = checked(descriptor.get("annotations") or {}, dict, "annotations")
        machine = checked(descriptor.get("platform") or {}, dict, "platform")
        where = f"{machine.get('os', '?')}/{machine.get('architecture', '?')}"
        candidates.append((str(notes.get(_REF, "no name")), where, descriptor))
    mine = os.uname().machine
    mine = _ARCHITECTURES.get(mine, mine)
    named = [each for each in candidates if ref is None or each[0] == ref]
    here = [each for each in named if each[1] == f"linux/{mine}"]
    chosen = named if len(named) == 1 else here
    if len(chosen) != 1:
        _ambiguous(ref, [f"{name} ({where})" for name, where, _ in candidates])
    return chosen[0][2]


def _ambiguous(ref: str | None, names: list[str]) -> NoReturn:
    given = "no ref is given" if ref is None else f"ref is {shown(ref)}"
    images = ", ".join(shown(name[:100]) for name in names[:20]) or "nothing"
    raise Refused(f"{given}, which does not choose one image; there is {images}")


def _counted(layers: list[Any]) -> list[Any]:
    if len(layers) > MAX_LAYERS:
        raise Refused(f"it has {len(layers)} layers, more than {MAX_LAYERS}")
    return layers


def _digest(digest: Any) -> str:
    if not _DIGEST.match(checked(digest, str, "a digest")):
        raise Refused(f"not a sha256 digest: {shown(digest[:100])}")
    return str(digest)


def _blob(descriptor: Any) -> Blob:
    """The file that a descriptor describes."""
    values = checked(descriptor, dict, "a descriptor")
    digest = _digest(values.get("digest"))
    size = checked(values.get("size"), int, "the size of a descriptor")
    return Blob(f"blobs/sha256/{digest[7:]}", digest, size)
