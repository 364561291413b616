# SPDX-License-Identifier: Apache-2.0
"""The demo's C project: the Lua sources in the source distribution of lupa.

It is downloaded once, into a cache, from the package index that pip is configured for. pip itself
is not used, because it would first build the package's metadata, which takes minutes.
"""

from __future__ import annotations

import hashlib
import html.parser
import http.client
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zlib
from pathlib import Path

FILE = "lupa-2.8.tar.gz"
SHA256 = "d8022641b9ec8ecf2c5ecbe9f47e5a70e0b87c4b5ae921b92cb02a638e0acd08"
PREFIX = "lupa-2.8/third-party/"
MAX_SIZE = 64 << 20  # bytes of all files together


class SourceError(Exception):
    """The sources cannot be downloaded, or are not the expected ones."""


def fetch() -> Path:
    """The directory with lua51 ... lua55. If it is missing, download, check and unpack it. Raises
    SourceError.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = Path(base, "sandboxlib")
    done = cache / SHA256[:16]
    if not done.is_dir():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as new:
                archive = Path(new, FILE)
                archive.write_bytes(checked(download()))
                unpack(archive, Path(new, "tree"))
                _publish(Path(new, "tree"), done)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise SourceError(f"cannot fetch {FILE}: {error}") from error
    return done


def _publish(tree: Path, done: Path) -> None:
    try:
        tree.rename(done)
    except OSError:  # another demo made the directory first
        if not done.is_dir():
            raise


# ---- download --------------------------------------------------------------------------------


def index_url() -> str:
    """The index that pip is configured for, or pip's default."""
    configured = os.environ.get("PIP_INDEX_URL") or _pip("config", "get", "global.index-url")
    if configured.strip():
        return configured.strip()
    text = " ".join(_pip("download", "--help").split())
    found = re.search(r"--index-url <url> .*?\(default (\S+?)\)", text)
    if not found:
        raise SourceError("pip does not say which index it uses")
    return found.group(1)


def _pip(*args: str) -> str:
    argv = [sys.executable, "-m", "pip", *args]
    env = {**os.environ, "COLUMNS": "500", "NO_COLOR": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False)
    return done.stdout if done.returncode == 0 else ""


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "a" and href:
            self.found.append(href)


def download() -> bytes:
    """Download the archive from the index."""
    certificates = os.environ.get("PIP_CERT") or _pip("config", "get", "global.cert").strip()
    context = ssl.create_default_context(cafile=certificates or None)

    def get(url: str) -> bytes:
        with urllib.request.urlopen(url, timeout=30, context=context) as answer:
            data: bytes = answer.read(MAX_SIZE)
        return data

    page = index_url().rstrip("/") + "/lupa/"
    links = _Links()
    links.feed(get(page).decode(errors="replace"))
    for href in links.found:
        url = urllib.parse.urldefrag(urllib.parse.urljoin(page, href)).url
        if url.endswith("/" + FILE):
            return get(url)
    raise SourceError(f"{FILE} is not in the index {page}")


def checked(data: bytes) -> bytes:
    """Return the data. Raises SourceError if its digest is not that of the archive."""
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise SourceError(f"the sha256 of {FILE} is not {SHA256}")
    return data


# ---- unpack ----------------------------------------------------------------------------------


def unpack(archive: Path, target: Path) -> None:
    """Write the Lua sources below target. It unpacks only regular files, writes none through a
    link, and no name can lead out of target.
    """
    size = 0
    target.mkdir()
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.removeprefix(PREFIX)
                if not member.isreg() or not re.match(PREFIX + r"lua5\d/", member.name):
                    continue
                size += member.size
                if any(part in ("", ".", "..") for part in name.split("/")) or size > MAX_SIZE:
                    raise SourceError(f"{archive.name} has an unexpected member: {member.name!r}")
                _write(tar, member, target / name)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise SourceError(f"cannot unpack {archive.name}: {error}") from error


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    assert content is not None
    with content, open(path, "xb") as file:
        shutil.copyfileobj(content, file)
