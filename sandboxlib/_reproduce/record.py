# SPDX-License-Identifier: Apache-2.0
"""Values as JSON: of a value its class and its fields, as for a pickle, but with nothing that runs.

What comes out of a file was made by the class, which checks each field.
"""

from __future__ import annotations

from collections.abc import Mapping

from .._values import Value, short
from ..errors import SpecError, SpecTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_KIND = "@"  # the key that names the class of an object
_DEEPEST = 50  # objects in each other; recursion takes a frame of Python for each


def encode(name: str, value: object) -> Any:
    """A value as json.dumps takes it. SpecError if it means something in this process alone.

    name: of the field, for the message.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return {_KIND: "path", "path": str(value)} if hasattr(value, "__fspath__") else value
    if isinstance(value, bytes):
        from base64 import b64encode

        return {_KIND: "bytes", "base64": b64encode(value).decode()}
    if isinstance(value, Value):
        return {_KIND: type(value).__name__, **_fields(value.__getstate__())}
    if isinstance(value, Mapping):
        return _fields(value) if _KIND not in value else {_KIND: "dict", "dict": [*value.items()]}
    if isinstance(value, (tuple, list)):
        return [encode(name, each) for each in value]
    raise SpecError(f"{name} cannot be written to a file: {short(value)}")


def _fields(state: Mapping[str, object]) -> dict[str, Any]:
    return {name: encode(name, value) for name, value in state.items()}


def decode(value: Any, kinds: Mapping[str, type[Value]], depth: int = _DEEPEST) -> Any:
    """What encode() wrote. SpecError for anything else.

    kinds: the classes that there may be, by their names.
    """
    if not depth:
        raise SpecError(f"more than {_DEEPEST} objects in each other")
    if isinstance(value, list):
        return [decode(each, kinds, depth - 1) for each in value]
    if not isinstance(value, dict):
        return value
    fields = {name: decode(each, kinds, depth - 1) for name, each in value.items()}
    if _KIND not in fields:
        return fields
    kind = fields.pop(_KIND)
    if not isinstance(kind, str) or kind not in {*_READ, *kinds}:
        raise SpecError(f"there is no {short(kind)}, only {', '.join((*_READ, *kinds))}")
    if kind in _READ:
        name, read = _READ[kind]
        if fields.keys() != {name}:
            raise SpecError(f"{kind} has the fields {', '.join(fields)}, and not {name}")
        return read(fields[name])
    made = object.__new__(kinds[kind])
    made.__setstate__(fields)
    return made


def _bytes(text: object) -> bytes:
    from base64 import b64decode

    try:
        return b64decode(text, validate=True)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise SpecError(f"bytes are not in base64: {error}") from None


def _path(text: object) -> object:
    from pathlib import Path

    if not isinstance(text, str):
        raise SpecTypeError(f"a path is no str: {short(text)}")
    return Path(text)


def _dict(pairs: object) -> dict[str, Any]:
    try:
        return dict(pairs)  # type: ignore[call-overload,no-any-return]
    except (TypeError, ValueError) as error:
        raise SpecError(f"no pairs of names and values: {error}") from None


_READ = {"bytes": ("base64", _bytes), "path": ("path", _path), "dict": ("dict", _dict)}
