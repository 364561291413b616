# SPDX-License-Identifier: Apache-2.0
"""Reads the salt of an Action of ours: what of a Command and its Sandbox the API has no field for.

_digest/salt.py writes it, and says what is in it. It comes from another machine: each value is
checked by its class, and a name that is not known is an error, as whatever it asks for would not
be done.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping

from .._digest.salt import PREFIX, SCHEMA
from .._images.kinds import default_user
from .._reapi import check_digest
from .._spec.inputs import File
from .._spec.mount import MOST_CONTENT, Mount
from .._spec.policy import Policy
from .._spec.streams import STDOUT
from .._spec.user import User
from .._values import check_choice, check_flag, check_inside, check_number, check_text, short
from ..errors import SpecError, SpecTypeError, UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST_DATE = 10**11 - 1  # seconds, as SOURCE_DATE_EPOCH may have
_MOST_PROFILE = 4 << 20  # bytes, as a Policy takes them
_MOST_MOUNTS = 1000
_LAYER = re.compile(r"sha256:[0-9a-f]{64}")
#: The fields of a Sandbox that are as they are, and what it means that one is left out.
_AS_THEY_ARE: dict[str, object] = {
    **dict.fromkeys(("network", "mounts", "processes", "ipc", "tmp", "devices")),
    **dict.fromkeys(("hostname", "umask", "personality", "filesystem_writable_paths")),
    **dict.fromkeys(("init", "deterministic", "resolv_conf"), False),
}
_NAMES = frozenset("command layers machine mtime sandbox trees".split())
#: What was assumed to be known where the Action was made, and is not known here.
_ASSUMED = {
    "sandbox": {"root": "a directory", "upper": "an upper of that machine"},
    "command": {"pass_fds": "descriptors", "pty": "a terminal", "pty_stderr": "a terminal"},
}

Content = Callable[[str], bytes]


class Described:
    """What the salt of an Action says.

    sandbox: dict, keyword arguments of Sandbox: all but root, store and limits.
    layers: list, bottom first, each one of: a str "sha256:..." (the tar of a layer, by its
        diff_id), a str "HASH/SIZE" (the Directory of a Tree), a tuple of str "sha256:..." (the
        layers of an Image: one that hides all below it hides only those of the Image).
    stdin: str, the digest of the content; None: empty.
    options: dict, keyword arguments of Command: executable, stderr (STDOUT).
    trees: tuple of str, the paths of inputs that are a Tree: nothing of the root is seen there.
    source_date: int, seconds since 1970, the times of staged files; None: there are none.
    machine: str, as `uname -m` has it.
    more: dict, the names that the maker added with salt_of(more=), as they are.
    """

    __slots__ = (
        *("layers", "machine", "more", "options", "sandbox", "source_date", "stdin"),
        "trees",
    )

    def __init__(self, fields: Mapping[str, Any], content: Content) -> None:
        self.sandbox = _box_options(_object("sandbox", fields.get("sandbox", {})), content)
        self.layers = [_layer(each) for each in _list("layers", fields.get("layers"))]
        self.stdin, self.options = _command(_object("command", fields.get("command", {})))
        trees = _list("trees", fields.get("trees", []))
        self.trees = tuple([check_inside("the path of a Tree", _name(each)) for each in trees])
        date = fields.get("mtime")
        self.source_date = None if date is None else check_number("mtime", date, 0, _MOST_DATE)
        self.machine = check_text("machine", fields.get("machine"))
        self.more = {name: each for name, each in fields.items() if name not in _NAMES}


def is_ours(salt: bytes) -> bool:
    """Whether sandboxlib made the Action, of any version."""
    return salt.startswith(b"sandboxlib ")


def decode(salt: bytes, content: Content, more: frozenset[str] = frozenset()) -> Described:
    """What the salt says.

    content: returns the content of a digest that the salt names (of a seccomp profile, or of a
        Mount.file), which was checked; it is called for contents of a bounded size only.
    more: the names that the maker may have added with salt_of(more=).

    Raises UnsupportedError for an Action of another version of sandboxlib; SpecError for a salt
    that sandboxlib did not write, or that names what is known where it was made alone.
    """
    if not salt.startswith(PREFIX):
        found = " ".join(salt[:20].decode(errors="replace").split(" ")[:2])
        raise UnsupportedError(
            f"the Action is of {found!r}, and this sandboxlib reads 'sandboxlib {SCHEMA}': both"
            " sides have to have the same version"
        )
    try:
        fields = json.loads(salt[len(PREFIX) :], object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"the salt of the Action is no JSON: {error}") from None
    _known("the salt", _object("the salt", fields), _NAMES | more)
    return Described(fields, content)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = {name: _bytes_of(each) for name, each in pairs}
    if len(found) != len(pairs):
        raise SpecError(f"a name stands twice among {', '.join(name for name, _ in pairs)}")
    return found


def _bytes_of(value: Any) -> Any:
    """A str as the locale of this process has the same bytes."""
    if isinstance(value, str) and not value.isascii():
        return os.fsdecode(value.encode("utf-8", "surrogateescape"))
    return [_bytes_of(each) for each in value] if isinstance(value, list) else value


# ---- the parts -------------------------------------------------------------------------------


def _box_options(fields: dict[str, Any], content: Content) -> dict[str, Any]:
    _refuse_assumed("sandbox", fields)
    _known("sandbox", fields, {*_AS_THEY_ARE, "extra_mounts", "policy", "user"})
    options = {name: fields.get(name, empty) for name, empty in _AS_THEY_ARE.items()}
    for name in ("network", "mounts", "processes", "ipc", "devices"):
        if options[name] is None:
            raise SpecError(f"the salt says nothing of {name}")
    mounts = _list("extra_mounts", fields.get("extra_mounts", []))
    if len(mounts) > _MOST_MOUNTS:
        raise SpecError(f"the salt has {len(mounts)} mounts")
    options["extra_mounts"] = [_mount(_object("a mount", each), content) for each in mounts]
    options["policy"] = _policy(_object("policy", fields.get("policy")), content)
    options["user"] = _user(fields.get("user"))
    return options


def _mount(fields: dict[str, Any], content: Content) -> Mount:
    if fields.get("type") == "bind":
        raise SpecError(f"{short(fields.get('target'))} is a bind, of the machine of the maker")
    _known("a mount", fields, set(Mount._fields))
    _needs("a mount", fields, "target")
    values = dict(fields)
    if (told := values.get("content")) is not None:
        _known("a content", _object("a content", told), {"digest", "executable"})
        check_flag("executable", told.get("executable"))
        data = content(_bounded(told.get("digest"), MOST_CONTENT))
        values["content"] = File(data, executable=told["executable"])
    return Mount(**values)


def _policy(fields: dict[str, Any], content: Content) -> Policy:
    _known("policy", fields, set(Policy._fields))
    values = dict(fields)
    if isinstance(seccomp := values.get("seccomp"), dict):
        _known("a profile", seccomp, {"profile"})
        text = content(_bounded(seccomp.get("profile"), _MOST_PROFILE))
        try:
            values["seccomp"] = _object("a profile", json.loads(text))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise SpecError(f"the seccomp profile is no JSON: {error}") from None
    return Policy(**values)


def _user(value: Any) -> Any:
    if isinstance(value, str):
        if value == "caller":
            raise SpecError("the ids are those of the caller of another machine")
        check_choice("user", value, ("root", "ranges"))
        return value
    fields = _object("user", value)
    if "image" not in fields:
        _known("user", fields, set(User._fields))
        _needs("user", fields, "uid")
        return User(**fields)
    _known("user", fields, {"image"})
    ids = _list("the ids of an image", fields["image"])
    if len(ids) != 2:
        raise SpecError(f"the ids of an image are {len(ids)}, and have to be two")
    user = default_user()
    return user if ids == [0, 0] else User(*ids, ranges=user == "ranges")


def _command(fields: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    _refuse_assumed("command", fields)
    _known("command", fields, {"executable", "stdin", "stderr"})
    options: dict[str, Any] = {}
    if "executable" in fields:
        options["executable"] = check_text("executable", fields["executable"])
    if "stderr" in fields:
        check_choice("stderr", fields["stderr"], ("stdout",))
        options["stderr"] = STDOUT
    stdin = fields.get("stdin")
    return None if stdin is None else check_digest("stdin", stdin), options


def _layer(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, dict):
        raise SpecError("a layer is a directory of the machine of the maker, not known here")
    if isinstance(value, list):
        return tuple([_one_layer(each) for each in value])
    if isinstance(value, str) and "/" in value:
        return check_digest("a layer", value)
    return _one_layer(value)


def _one_layer(value: Any) -> str:
    if not isinstance(value, str) or not _LAYER.fullmatch(value):
        raise SpecError(f"a layer is no digest: {short(value)}")
    return value


# ---- checks ----------------------------------------------------------------------------------


def _bounded(digest: Any, most: int) -> str:
    """A digest of a content that may be taken into memory."""
    checked = check_digest("a content", digest)
    if int(checked.partition("/")[2]) > most:
        raise SpecError(f"a content of the salt is larger than {most} bytes: {checked}")
    return checked


def _object(what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecTypeError(f"{what} of the salt is no object: {short(value)}")
    return value


def _list(what: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise SpecTypeError(f"{what} of the salt is no list: {short(value)}")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise SpecTypeError(f"a path of the salt is no str: {short(value)}")
    return value


def _known(what: str, fields: Mapping[str, Any], names: set[str] | frozenset[str]) -> None:
    if unknown := sorted(fields.keys() - names):
        raise SpecError(f"{what} has {', '.join(map(repr, unknown))}, which is not known here")


def _needs(what: str, fields: Mapping[str, Any], name: str) -> None:
    if name not in fields:
        raise SpecError(f"{what} of the salt has no {name}")


def _refuse_assumed(what: str, fields: Mapping[str, Any]) -> None:
    for name, text in _ASSUMED[what].items():
        if name in fields:
            raise SpecError(f"the {what} has {name}: {text}, which is not known here")
