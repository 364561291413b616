# SPDX-License-Identifier: Apache-2.0
"""Value, the frozen base of all values, and the checks of single arguments."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter

from .errors import SpecChoiceError, SpecError, SpecTypeError, setup_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeGuard

ENCODING = sys.getfilesystemencoding()  # as os.fsencode uses it


def check_text(what: str, value: object) -> str:
    """The str of a str or a path; SpecError if the kernel cannot take it."""
    if type(value) is not str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise SpecTypeError(f"{what} is a {type(value).__name__}, not a str: {value!r}")
    if "\0" in value:
        raise SpecError(f"{what} contains a NUL byte: {value!r}")
    try:
        value.encode(ENCODING, "surrogateescape")
    except UnicodeEncodeError as error:
        raise SpecError(f"{what} cannot be encoded: {error}") from None
    return value


def check_path(what: str, value: object) -> str:
    """The str of a path; SpecError also for "", which joined to another path would name that."""
    path = check_text(what, value)
    if not path:
        raise SpecError(f"{what} is empty")
    return path


def check_choice(what: str, value: object, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise SpecChoiceError(f"{what} is {value!r}, and has to be one of {', '.join(choices)}")


def is_several(value: object) -> TypeGuard[Iterable[object]]:
    """Whether a value may be several values. A mapping is none: its values would be lost."""
    is_one = isinstance(value, (str, bytes, bytearray, memoryview, Mapping))
    return not is_one and isinstance(value, Iterable)


def check_flag(what: str, value: object) -> None:
    if not isinstance(value, bool):
        raise SpecTypeError(f"{what} is a {type(value).__name__}, not a bool: {value!r}")


def check_number(what: str, value: object, low: int, high: int) -> int:
    """An int from low to high."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpecTypeError(f"{what} is not an int: {value!r}")
    if not low <= value <= high:
        raise SpecError(f"{what} is {value}, and has to be from {low} to {high}")
    return value


_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def check_size(what: str, value: object, low: int, high: int) -> int:
    """A number of bytes: an int, or a str like "200M", whose units are powers of 1024."""
    if isinstance(value, str):
        unit = _UNITS.get(value[-1:].lower(), 1)
        digits = value if unit == 1 else value[:-1]
        if not digits.isascii() or not digits.isdigit() or len(digits) > 19:
            raise SpecError(f"{what} is no size: {value!r}; write bytes, or 512K, 200M, 2G, 1T")
        value = int(digits) * unit
    return check_number(what, value, low, high)


def check_seconds(what: str, value: object) -> float:
    """A number of seconds, from 0 to 1e9."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SpecTypeError(f"{what} is not a number of seconds: {value!r}")
    if not 0 <= value < 1e9:
        raise SpecError(f"{what} has to be from 0 to 1e9 seconds: {value!r}")
    return value


def check_descriptor(name: str, value: Any) -> int:
    """The descriptor of a file, or the number itself."""
    if isinstance(value, bool) or not (isinstance(value, int) or hasattr(value, "fileno")):
        text = f"{name} is neither a file nor a descriptor: {short(value)}"
        raise SpecTypeError(text + _instead_of_text(name, value))
    try:
        fd = value if isinstance(value, int) else value.fileno()
    except (OSError, ValueError) as error:
        raise SpecError(_no_descriptor(name, value, error)) from None
    if not 0 <= fd < 1 << 31:
        raise SpecError(f"{name} is {fd}, which is no descriptor")
    return int(fd)


def _instead_of_text(name: str, value: object) -> str:
    """What to give in place of a str for a stream."""
    if not isinstance(value, (str, os.PathLike)):
        return ""
    if name == "stdin":
        return "; text is stdin=text.encode(), and the content of a file stdin=open(path, 'rb')"
    return f"; a file to write to is {name}=open(path, 'wb')"


def _no_descriptor(name: str, value: object, error: Exception) -> str:
    """The message for a file object without a descriptor, such as an io.BytesIO."""
    kind = type(value).__name__
    if getattr(value, "closed", False) is True:
        return f"{name} is a {kind} that is closed: {error}"
    if name == "stdin":
        method = "getvalue" if hasattr(value, "getvalue") else "read"
        is_text = not hasattr(value, "readinto")
        remedy = f"give its bytes: stdin=file.{method}(){'.encode()' if is_text else ''}"
    else:
        remedy = f"{name}=CAPTURE"
        if hasattr(value, "readinto"):  # a file of text takes no bytes
            remedy += f", or a function: {name}=file.write"
    return f"{name} is a {kind}, which lives in this process and has no descriptor: {remedy}"


def short(value: object, most: int = 200) -> str:
    """The repr of a value, cut off if it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def unknown_keyword(
    call: str, options: Iterable[str], known: Iterable[str], hint: str = ""
) -> SpecTypeError:
    """The error for an unknown keyword argument; it names the nearest known one.

    hint: text that replaces that.
    """
    names = list(known)
    name = next(each for each in options if each not in names)
    if not hint:
        import difflib

        near = difflib.get_close_matches(str(name), names, 1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names)}"
    return SpecTypeError(f"{call} has no keyword argument {name}: {hint}")


class Value:
    """A frozen value: ==, hash() and repr() use its fields. (dataclasses takes 10 ms to import.)"""

    _fields: tuple[str, ...] = ()
    _values_of: Callable[[Value], object]

    def __init_subclass__(cls) -> None:
        cls._values_of = staticmethod(attrgetter(*cls._fields))  # several times as fast as a loop

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a {type(self).__name__} does not change: {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__} does not change: {name}")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values_of(self) == other._values_of(other)

    def __hash__(self) -> int:
        return hash(self._values_of(self))

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._fields}

    def __setstate__(self, state: object) -> None:
        """Checks the fields again: a pickle may hold values that the class would refuse."""
        if not isinstance(state, dict) or state.keys() != set(self._fields):
            raise SpecTypeError(f"a pickle does not have what a {type(self).__name__} is made of")
        type(self).__init__(self, **state)

    def _replaced(self, changes: dict[str, Any]) -> Any:
        """A value of the same class with other fields: what the replace() of a class returns."""
        if not changes.keys() <= set(self._fields):
            raise unknown_keyword(f"{type(self).__name__}.replace", changes, self._fields)
        make: Any = type(self)
        return make(**{**self.__getstate__(), **changes})

    def __repr__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({', '.join(fields)})"


def check_inside(what: str, value: object) -> str:
    """An absolute path inside the root, normalised."""
    path = check_path(what, value)
    if not path.startswith("/"):
        raise SpecError(f"{what} is relative, and has to be absolute inside the root: {path!r}")
    if ".." in path.split("/"):
        raise SpecError(f"{what} contains '..': {path!r}")
    path = "/" + "/".join(part for part in path.split("/") if part not in ("", "."))
    if len(os.fsencode(path)) > 4095:
        raise SpecError(f"{what} is longer than the 4,095 bytes of a path")
    return path


def absolute(path: str) -> str:
    """The path from '/' on. Unlike os.path.abspath it keeps `link/..`, as the kernel does."""
    return path if path.startswith("/") else os.path.join(caller_directory(), path)


def caller_directory() -> str:
    """os.getcwd(); SetupError if the directory was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        what = "the directory of the caller, which was removed"
        raise setup_error(errno.ENOENT, None, "cwd", what) from None


class AnyStore(Value):
    """The base of Store, for those who check that something is one: see _store/storage.py."""

    _fields = ("directory", "max_size")
    directory: str
    max_size: int | None


class Output:
    """The base of Lines and Tee: outputs that _runs/sinks.py moves while the command runs."""
