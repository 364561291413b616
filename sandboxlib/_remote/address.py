# SPDX-License-Identifier: Apache-2.0
"""The URL of a server, and the name of an instance there, checked before anything connects."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from .._values import Value, check_text
from ..errors import SpecError, SpecTypeError

_FORMS = "write grpc://HOST:PORT, grpcs://HOST, or unix:///PATH"
#: Words that part the names of blobs, so that no part of an instance's name may be one.
_RESERVED = frozenset(
    ("blobs", "uploads", "actions", "actionResults", "operations", "capabilities")
) | {"compressed-blobs"}


class Address(Value):
    """Where a server is.

    url: as errors name it. target: as gRPC wants it. has_tls: bool. keeps_secrets: bool, whether
    nobody on the way can read what is sent.
    """

    _fields = ("url", "target", "has_tls", "keeps_secrets")

    def __init__(self, url: str, target: str, has_tls: bool, keeps_secrets: bool) -> None:
        self.__dict__.update(url=url, target=target, has_tls=has_tls, keeps_secrets=keeps_secrets)

    url: str
    target: str
    has_tls: bool
    keeps_secrets: bool


def parse(url: object) -> Address:
    """The Address of a URL; SpecError for anything else."""
    if not isinstance(url, str):
        raise SpecTypeError(f"url is a {type(url).__name__}, not a str: {url!r}")
    text = check_text("url", url)
    if not text.isprintable() or " " in text:
        raise SpecError(f"url has characters that none has: {text!r}")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise SpecError(f"url is {text!r}: {error}; {_FORMS}") from None
    if parts.scheme == "unix":
        return _socket(text, parts)
    if parts.scheme not in ("grpc", "grpcs"):
        raise SpecError(f"url is {text!r}, of no known kind; {_FORMS}")
    if parts.username is not None or parts.query or parts.fragment:
        raise SpecError(f"url has more than a host and a port; {_FORMS}; a token is token=PATH")
    if parts.path not in ("", "/"):
        raise SpecError(f"url is {text!r}; {_FORMS}; the name of an instance is instance=NAME")
    if not parts.hostname:
        raise SpecError(f"url is {text!r}, without a host; {_FORMS}")
    has_tls = parts.scheme == "grpcs"
    if port is None and not has_tls:
        raise SpecError(f"url is {text!r}, without a port; {_FORMS}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    where = f"{host}:{443 if port is None else port}"
    is_near = _is_loopback(parts.hostname)
    return Address(f"{parts.scheme}://{where}", f"dns:{where}", has_tls, has_tls or is_near)


def _socket(text: str, parts: SplitResult) -> Address:
    if parts.netloc or not parts.path.startswith("/") or parts.query or parts.fragment:
        raise SpecError(f"url is {text!r}; a Unix socket is unix:///PATH")
    return Address(f"unix://{parts.path}", f"unix:{parts.path}", False, True)


def _is_loopback(host: str) -> bool:
    import ipaddress

    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_instance(value: object) -> str:
    """The name of an instance, as it stands in the names of blobs."""
    if not isinstance(value, str):
        raise SpecTypeError(f"instance is a {type(value).__name__}, not a str: {value!r}")
    name = check_text("instance", value)
    if not name.isprintable():
        raise SpecError(f"instance has characters that no name has: {name!r}")
    if name and "" in name.split("/"):
        raise SpecError(f"instance is {name!r}, with an empty part between slashes")
    if words := _RESERVED & set(name.split("/")):
        raise SpecError(f"instance is {name!r}, and {sorted(words)[0]!r} is a word of the API")
    return name
