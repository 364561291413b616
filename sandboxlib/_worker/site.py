# SPDX-License-Identifier: Apache-2.0
"""The tables [sandbox] and [properties] of the configuration, as a Site and as what the server is
told of this worker.
"""

from __future__ import annotations

import os

from .._actions.site import PROPERTIES, Site
from .._spec.limits import Limits
from .._spec.mount import Mount
from .._spec.overlay import Overlay
from .._spec.policy import Policy
from ..api import Sandbox
from ..errors import SpecError, SpecTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .config import Config

#: The keys of [sandbox] that are the site's; all others are keyword arguments of Sandbox.
OF_THE_SITE = ("root", "directory", "allow_network", "uids", "max_output")
#: The machine, as clients of remote execution call it, and what it runs beside.
ISAS = {"x86_64": ("x86-64", "x86-32"), "aarch64": ("aarch64",)}


def site_of(config: Config) -> Site:
    """The Site of a configuration. Raises SpecError and SpecTypeError, which name the key."""
    values: dict[str, Any] = {}
    options: dict[str, Any] = {"umask": 0o022}
    for name, value in config.sandbox.items():
        if name in OF_THE_SITE:
            values[name] = value
        else:
            options[name] = _option(name, value)
    try:
        Sandbox(Overlay(), **options)  # checks them: an action is too late for that
        return Site(
            options=options,
            name=config.name,
            properties=_properties(config),
            timeout=config.timeout,
            max_timeout=config.max_timeout,
            **values,
        )
    except SpecTypeError as error:
        raise SpecTypeError(f"[sandbox]: {error}") from None
    except SpecError as error:
        raise SpecError(f"[sandbox]: {error}") from None


def check_root(site: Site, cache: str) -> None:
    """SpecError for a root that is no directory, or that holds the cache, or lies in it: the kernel
    makes no overlay of two directories of which one lies in the other.
    """
    if type(site.root) is not str or site.is_input_root:
        return
    try:
        root, place = os.stat(site.root), os.stat(cache)
        os.close(os.open(site.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        text = f"{error.filename} cannot be used: {error.strerror}"
        raise SpecError(f"[sandbox] root: {text}") from None
    paths = os.path.realpath(site.root), os.path.realpath(cache)
    if root.st_dev == place.st_dev and os.path.commonpath(paths) in paths:
        text = f"{site.root} and the cache {cache} are the same, or one lies in the other"
        remedy = "a cache on another file system will do, as one in /dev/shm"
        raise SpecError(f"[sandbox] root: {text}; {remedy}")


def _option(name: str, value: Any) -> Any:
    """A keyword argument of Sandbox from a value of TOML: a table becomes what it stands for."""
    makers: dict[str, Callable[..., Any]] = {"limits": Limits, "policy": Policy}
    if name in makers and isinstance(value, dict):
        return _made(name, makers[name], value)
    if name == "extra_mounts" and isinstance(value, list):
        return tuple(_made(name, Mount.bind, each) for each in value)
    return value


def _made(name: str, maker: Callable[..., Any], table: object) -> Any:
    if not isinstance(table, dict):
        raise SpecTypeError(f"[sandbox] {name}: {table!r} is no table, as {{ NAME = VALUE }}")
    try:
        return maker(**table)
    except TypeError as error:
        raise SpecTypeError(f"[sandbox] {name}: {error}") from None
    except SpecError as error:
        raise SpecError(f"[sandbox] {name}: {error}") from None


def _properties(config: Config) -> dict[str, list[str]]:
    """The further properties of the site: each with the values that an action may have."""
    found = {}
    for name, value in config.properties.items():
        values = value if isinstance(value, list) else [value]
        if name in PROPERTIES:
            raise SpecError(f"[properties] {name}: the worker itself says what this property does")
        if not all(isinstance(each, str) for each in values) or not values:
            text = f"[properties] {name}: {value!r} is neither a text nor a list of texts"
            raise SpecTypeError(text)
        found[name] = values
    return found


def announced(config: Config) -> list[tuple[str, str]]:
    """The properties that the server is told, by which a scheduler chooses workers."""
    machine = os.uname().machine
    pairs = [("OSFamily", "linux"), ("sandboxlib", "1")]
    pairs += [("ISA", isa) for isa in ISAS.get(machine, (machine,))]
    for name, values in _properties(config).items():
        pairs += [(name, value) for value in values]
    return pairs
