# SPDX-License-Identifier: Apache-2.0
"""Values as JSON: of a value its class and its fields, as for a pickle, but with nothing that runs.

What comes out of a file was made by the class, which checks each field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .._values import Value, short
from ..errors import SpecError, SpecTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KIND = "@"  # the key that names the class of an object
_DEEPEST = 50  # objects in each other; recursion takes a frame of Python for each


def encode(name: str, value: object, other: Callable[[object], Any]) -> Any:
    """A value as json.dumps takes it. SpecError if it means something in this process alone.

    name: of the field, for the message. other: encodes values in its own way; None: not this one.
    """
    if isinstance(value, Value):
        own = other(value)
        return of_fields(type(value).__name__, value.__getstate__(), other) if own is None else own
    if isinstance(value, Mapping):
        plain = {each: encode(each, inner, other) for each, inner in value.items()}
        return plain if KIND not in plain else {KIND: "dict", "dict": [*plain.items()]}
    if isinstance(value, (tuple, list)):
        return [encode(name, each, other) for each in value]
    return _plain(name, value)


def of_fields(
    kind: str, state: Mapping[str, object], other: Callable[[object], Any]
) -> dict[str, Any]:
    """The object of a class. state: its fields. other: as in encode()."""
    return {KIND: kind, **{name: encode(name, value, other) for name, value in state.items()}}


def _plain(name: str, value: object) -> Any:
    if isinstance(value, bytes):
        from base64 import b64encode

        return {KIND: "bytes", "base64": b64encode(value).decode()}
    if isinstance(value, str) and hasattr(value, "__fspath__"):
        return {KIND: "path", "path": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise SpecError(f"{name} cannot be written to a file: {short(value)}")


def decode(value: Any, kinds: Mapping[str, Callable[[Any], object]], depth: int = _DEEPEST) -> Any:
    """What encode() wrote. SpecError for anything else.

    kinds: what makes a value out of its fields, by the names that there may be.
    """
    if not depth:
        raise SpecError(f"more than {_DEEPEST} objects in each other")
    if isinstance(value, list):
        return [decode(each, kinds, depth - 1) for each in value]
    if not isinstance(value, dict):
        return value
    fields = {name: decode(each, kinds, depth - 1) for name, each in value.items()}
    if KIND not in fields:
        return fields
    kind = fields.pop(KIND)
    if not isinstance(kind, str) or kind not in {*_PLAIN, *kinds}:
        raise SpecError(f"there is no {short(kind)}, only {', '.join((*_PLAIN, *kinds))}")
    return kinds[kind](fields) if kind in kinds else _PLAIN[kind](only(kind, fields))


def made(kind: type[Value]) -> Callable[[Any], object]:
    """What makes a value of a class out of its fields, as pickle does."""

    def make(fields: Any) -> object:
        value = object.__new__(kind)
        value.__setstate__(fields)
        return value

    return make


def only(kind: str, fields: Mapping[str, Any]) -> Any:
    """The value of the one field that an object has. SpecError if it has others."""
    if len(fields) != 1:
        raise SpecError(f"a {kind} has {', '.join(fields) or 'nothing'}, and has to have one field")
    return next(iter(fields.values()))


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


_PLAIN: Mapping[str, Callable[[Any], object]] = {"bytes": _bytes, "path": _path, "dict": _dict}
