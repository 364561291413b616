# SPDX-License-Identifier: Apache-2.0
"""Site: what whoever runs a worker decides, and the properties of a platform that actions may have.

An Action may ask for less than the site gives, and never for more: what cannot be kept is refused,
so that a client never gets a weaker sandbox, or another machine, than it asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from .. import _types
from .._spec.overlay import Layers, Overlay
from .._spec.user import User
from .._values import (
    Value,
    check_flag,
    check_inside,
    check_path,
    check_seconds,
    check_size,
    check_text,
    is_several,
    short,
    unknown_keyword,
)
from ..errors import SpecError, SpecTypeError
from .outcome import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The properties of a platform that an Action may have.
PROPERTIES = frozenset("OSFamily ISA unixUID unixGID network chrootRootDigest sandboxlib".split())
_MACHINES = {"x86-64": "x86_64", "amd64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}
_32_BIT = {"x86_64": ("x86-32", "i386", "i486", "i586", "i686"), "aarch64": ("aarch32", "arm")}
#: Options of Sandbox that the executor sets itself.
_OWN = {"store": "Executor(store=...)", "deterministic": "the environment is the Command's"}


class Site(Value):
    """What actions get on this machine. A frozen value.

    root: "input" (the default): the input root of an Action is the whole root of its command. A
        path, an Overlay, or a Layer, Image or Tree: the root of all commands; the input root then
        lies in it at `directory`.
    directory: str, absolute, where the input root lies in such a root; "/build" by default.
    options: mapping, keyword arguments of Sandbox, as limits, policy, user. {} by default: network,
        processes, mounts and ipc are isolated.
    name: str, the worker in the metadata of results. None (the default): the name of the host.
    properties: mapping from names to iterables of str: further properties of a platform that an
        Action may have, with the values that it may have. They change nothing. {} by default.
    allow_network: bool, whether an Action with the property network=on gets the network of this
        machine. False (the default): it is refused.
    uids: iterable of int, the values of unixUID and unixGID that an Action may have. None (the
        default): any that the executor can give, unless `options` has a user: then only its ids.
    timeout: float, seconds that a command may take if the Action has no timeout; 3600 by default.
    max_timeout: float, seconds; an Action that asks for more is refused. 86400 by default.
    max_output: int, bytes, or a str like "16M": how much a command may write to stdout, and to
        stderr; more ends it. "64M" by default.
    inline: int, bytes, or a str: output up to this size is in the result itself, and more is a
        blob. "16K" by default.

    Raises SpecError (a ValueError) if a value is wrong, and SpecTypeError for a value of the wrong
    type, or an unknown keyword argument.
    """

    _fields = (
        *("root", "directory", "options", "name", "properties", "allow_network", "uids"),
        *("timeout", "max_timeout", "max_output", "inline"),
    )
    root: _types.Any
    directory: str
    options: Mapping[str, _types.Any]
    name: str
    properties: Mapping[str, frozenset[str]]
    allow_network: bool
    uids: frozenset[int] | None
    timeout: float
    max_timeout: float
    max_output: int
    inline: int

    def __init__(
        self,
        root: _types.Any = "input",
        *,
        directory: str = "/build",
        options: Mapping[str, _types.Any] = MappingProxyType({}),
        name: str | None = None,
        properties: Mapping[str, Iterable[str]] = MappingProxyType({}),
        allow_network: bool = False,
        uids: Iterable[int] | None = None,
        timeout: float = 3600.0,
        max_timeout: float = 86400.0,
        max_output: int | str = "64M",
        inline: int | str = "16K",
        **unknown: _types.NoReturn,
    ) -> None:
        if unknown:
            raise unknown_keyword("Site", unknown, self._fields)
        check_flag("allow_network", allow_network)
        name = os.uname().nodename if name is None else check_text("name", name)
        self.__dict__.update(
            root=_root(root),
            directory=check_inside("directory", directory),
            options=MappingProxyType(_options(options)),
            name=name,
            properties=MappingProxyType(_properties(properties)),
            allow_network=allow_network,
            uids=None if uids is None else frozenset(uids),
            timeout=check_seconds("timeout", timeout),
            max_timeout=check_seconds("max_timeout", max_timeout),
            max_output=check_size("max_output", max_output, 0, 1 << 32),
            inline=check_size("inline", inline, 0, 1 << 20),
        )
        if timeout > max_timeout:
            raise SpecError(f"timeout is {timeout}, more than max_timeout, {max_timeout}")
        if not self.is_input_root and self.directory == "/":
            raise SpecError("directory is '/'; root='input' makes the input root the root")

    @property
    def is_input_root(self) -> bool:
        """Whether the input root is the root."""
        return type(self.root) is str and self.root == "input"

    @property
    def where(self) -> str:
        """Where the input root lies in the root."""
        return "/" if self.is_input_root else self.directory

    def __hash__(self) -> int:
        return id(self)

    def seconds(self, asked: float | None) -> float:
        """The timeout of a command. Raises Refused if the Action asks for more than it may."""
        if asked is None or asked == 0:
            return self.timeout
        if asked > self.max_timeout:
            text = f"a timeout of {asked:g} s, and this worker allows {self.max_timeout:g} s"
            raise Refused("INVALID_ARGUMENT", text)
        return asked

    def asked(self, platform: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """The options of Sandbox for the properties of a platform; `sandboxlib`=True for an Action
        of ours. Raises Refused for what cannot be kept.
        """
        options: dict[str, Any] = {}
        ids: dict[str, int] = {}
        for name, value in platform:
            if name in self.properties:
                if value not in self.properties[name]:
                    raise _refused(
                        name, value, f"it has {', '.join(sorted(self.properties[name]))}"
                    )
            elif name == "OSFamily":
                if value.lower() != "linux":
                    raise _refused(name, value, "it runs Linux")
            elif name == "ISA":
                options.update(_machine(value))
            elif name in ("unixUID", "unixGID"):
                ids[name] = self._id(name, value)
            elif name == "network":
                options.update(self._network(value))
            elif name == "sandboxlib":
                if value != "1":
                    raise _refused(name, value, "it knows 1")
                options["sandboxlib"] = True
            else:
                known = ", ".join(sorted({*PROPERTIES, *self.properties} - {"chrootRootDigest"}))
                raise _refused(name, value, f"it knows {known}")
        if ids:
            uid = ids.get("unixUID", 0)
            options["user"] = User(uid, ids.get("unixGID", uid))
        return options

    def _network(self, value: str) -> dict[str, Any]:
        if value == "off":
            return {"network": "isolated"}
        if value != "on":
            raise _refused("network", value, "it is 'on' or 'off'")
        if not self.allow_network:
            raise _refused("network", value, "it gives no network: allow_network of its site")
        return {"network": "undefined", "resolv_conf": True}

    def _id(self, name: str, value: str) -> int:
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise _refused(name, value, "it is no id")
        may = self.uids
        if may is None and (user := self.options.get("user")) is not None:
            ids = (user.uid, user.gid) if isinstance(user, User) else (user,)
            may = frozenset(each for each in ids if isinstance(each, int))
        if may is not None and int(value) not in may:
            raise _refused(name, value, f"it gives {', '.join(map(str, sorted(may))) or 'none'}")
        return int(value)


def _machine(value: str) -> dict[str, Any]:
    machine = os.uname().machine
    asked = value.lower()
    if asked in (machine, machine.replace("_", "-")) or _MACHINES.get(asked) == machine:
        return {}
    if asked in _32_BIT.get(machine, ()):
        return {"personality": "linux32"}
    raise _refused("ISA", value, f"it is {machine}")


def _refused(name: str, value: str, why: str) -> Refused:
    text = f"the platform property {name}={short(value)} cannot be kept by this worker: {why}"
    return Refused("FAILED_PRECONDITION", text)


def _root(value: object) -> object:
    if isinstance(value, (Overlay, Layers)):
        return value
    if value == "input":
        return "input"
    path = check_path("root", value)
    if not os.path.isabs(path):
        raise SpecError(f"root is neither 'input' nor an absolute path: {path!r}")
    return path


def _options(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SpecTypeError(f"options is no mapping: {short(value)}")
    for name, why in _OWN.items():
        if name in value:
            raise SpecError(f"options has {name!r}: {why}")
    return dict(value)


def _properties(value: object) -> dict[str, frozenset[str]]:
    if not isinstance(value, Mapping):
        raise SpecTypeError(f"properties is no mapping: {short(value)}")
    for name, values in value.items():
        if not is_several(values):
            raise SpecTypeError(f"the values of the property {name!r} are no list: {short(values)}")
    return {
        check_text("a property", name): frozenset(map(str, values))
        for name, values in value.items()
    }
