# SPDX-License-Identifier: Apache-2.0
"""How the worker is configured: a small TOML file, and a flag for each of its keys.

A flag is stronger than the file. Each error names the key and where it stands.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields

from .._values import check_choice, check_number, check_path, check_seconds, check_size, check_text
from ..errors import SpecError, SpecTypeError
from . import logs, metrics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: What systemd sets for a service that has CacheDirectory=.
CACHE_VARIABLE = "CACHE_DIRECTORY"


@dataclass(frozen=True)
class Config:
    """All keys, checked. docs/worker.md says what each is."""

    server: str
    cas: str
    instance: str
    token: str
    ca: str
    cert: str
    key: str
    name: str
    slots: int
    cache: str
    cache_size: int
    poll: float
    heartbeat: float
    timeout: float
    max_timeout: float
    drain_timeout: float
    metrics: str
    statsd: str
    statsd_tags: str
    log_format: str
    log_level: str
    sandbox: Mapping[str, Any]
    properties: Mapping[str, Any]


@dataclass(frozen=True)
class Key:
    """One key of the file, and the flag of the same name.

    name: str, as the file has it; the flag has "-" in place of "_".
    metavar: str: how the help calls the value.
    check: takes the name and the value of the file, or the text of a flag, and returns the value.
    default: the value, as the file would have it, or a function without arguments.
    help: str: a line.
    """

    name: str
    metavar: str
    check: Callable[[str, Any], Any]
    default: Any
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def read_config(path: str | None, flags: Mapping[str, Any]) -> Config:
    """The configuration of a file and of flags.

    path: str of a TOML file, or None: flags alone.
    flags: the values of flags by the names of keys, as text; a table is a list of "NAME=VALUE".

    Raises SpecError and SpecTypeError for a key that is unknown, missing or wrong.
    """
    table = _read(path) if path is not None else {}
    known = [key.name for key in KEYS] + list(TABLES)
    for name in table:
        if name not in known:
            raise SpecError(f"{path}: {name} is no key{_near(name, known)}")
    values: dict[str, Any] = {}
    for key in KEYS:
        values[key.name] = _value(key, path, table, flags)
    for name in TABLES:
        values[name] = _table(name, path, table, flags.get(name) or ())
    values["cas"] = values["cas"] or values["server"]
    config = Config(**values)
    _check_together(config)
    return config


def _value(key: Key, path: str | None, table: Mapping[str, Any], flags: Mapping[str, Any]) -> Any:
    if flags.get(key.name) is not None:
        return key.check(key.flag, flags[key.name])
    if key.name in table:
        return key.check(f"{path}: {key.name}", table[key.name])
    if key.default is None:
        where = f"{path} has no key {key.name}" if path else f"there is no {key.flag}"
        raise SpecError(f"{where}: {key.help}; give {key.flag} {key.metavar}, or {key.name} = ...")
    return key.default() if callable(key.default) else key.check(key.name, key.default)


def _table(
    name: str, path: str | None, table: Mapping[str, Any], flags: Iterable[str]
) -> dict[str, Any]:
    """One of TABLES: that of the file, and over it the flags of the form NAME=VALUE."""
    values = table.get(name, {})
    if not isinstance(values, dict):
        raise SpecTypeError(f"{path}: {name} is a {type(values).__name__}, not a table: [{name}]")
    values = dict(values)
    for text in flags:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise SpecError(f"--{TABLES[name]} {text!r} is not of the form NAME=VALUE")
        values[key] = _toml_value(value)
    return values


def _toml_value(text: str) -> Any:
    """The value that a flag gives: as TOML writes it, or else the text itself."""
    toml = _toml()
    try:
        return toml.loads(f"value = {text}")["value"]
    except toml.TOMLDecodeError:
        return text


def _read(path: str) -> dict[str, Any]:
    toml = _toml()
    try:
        with open(path, "rb") as file:
            table: dict[str, Any] = toml.load(file)
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is no TOML: {error}") from None
    return table


def _toml() -> Any:
    """tomllib, which Python 3.10 lacks, or the package that it was made of."""
    try:
        import tomllib
    except ImportError:
        try:
            import tomli as tomllib  # type: ignore[import-not-found,no-redef,unused-ignore]
        except ImportError:
            text = "Python 3.10 has no tomllib: pip install 'sandboxlib[worker]'"
            raise SpecError(text) from None
    return tomllib


def _near(name: str, known: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else f"; it has {', '.join(known)}"


def _check_together(config: Config) -> None:
    """What no key says alone."""
    if bool(config.cert) != bool(config.key):
        lacking, given = ("key", "cert") if config.cert else ("cert", "key")
        raise SpecError(f"{given} is given without {lacking}: a client certificate takes both")
    if config.timeout > config.max_timeout:
        text = f"timeout is {config.timeout:g}, which is more than max_timeout"
        raise SpecError(f"{text}, {config.max_timeout:g}")


# ---- the checks of single keys ---------------------------------------------------------------


def _text(what: str, value: object) -> str:
    return check_text(what, value)


def _optional_path(what: str, value: object) -> str:
    path = check_text(what, value)
    return os.path.abspath(os.path.expanduser(path)) if path else ""


def _path(what: str, value: object) -> str:
    return os.path.abspath(os.path.expanduser(check_path(what, value)))


def _url(what: str, value: object) -> str:
    url = check_text(what, value)
    if not url.startswith(("grpc://", "grpcs://", "unix:")):
        raise SpecError(f"{what} is {url!r}, and has to begin with grpc://, grpcs:// or unix://")
    return url


def _optional_url(what: str, value: object) -> str:
    return _url(what, value) if value != "" else ""


def _name(what: str, value: object) -> str:
    name = check_text(what, value)
    if not name or "/" in name or not name.isprintable() or len(name) > 200:
        raise SpecError(f"{what} is {name!r}; it takes 1 to 200 printable characters without '/'")
    return name


def _count(what: str, value: object) -> int:
    if isinstance(value, str):
        if not value.isascii() or not value.isdigit():
            raise SpecTypeError(f"{what} is no number: {value!r}")
        value = int(value)
    return check_number(what, value, 1, 10_000)


def _size(what: str, value: object) -> int:
    return check_size(what, value, 1 << 20, 1 << 60)


def _seconds(what: str, value: object) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise SpecTypeError(f"{what} is no number of seconds: {value!r}") from None
    return float(check_seconds(what, value))


def _at_least(least: float) -> Callable[[str, object], float]:
    def check(what: str, value: object) -> float:
        seconds = _seconds(what, value)
        if seconds < least:
            raise SpecError(f"{what} is {seconds:g}, and has to be at least {least:g} seconds")
        return seconds

    return check


def _choice(choices: tuple[str, ...]) -> Callable[[str, object], str]:
    def check(what: str, value: object) -> str:
        check_choice(what, value, choices)
        return str(value)

    return check


def _address(what: str, value: object) -> str:
    """HOST:PORT, or "" for none; a port alone is one of the loopback address."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = check_text(what, value)
    if not text:
        return ""
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise SpecError(f"{what} is {text!r}; it takes HOST:PORT, or PORT alone, which is loopback")
    return f"{host or '127.0.0.1'}:{port}"


def address(text: str) -> tuple[str, int] | None:
    """The host and the port of a checked address; None for ""."""
    host, _, port = text.rpartition(":")
    return (host.strip("[]"), int(port)) if text else None


def _slots() -> int:
    return len(os.sched_getaffinity(0))


def _cache() -> str:
    """Where an ordinary program of this user keeps a cache."""
    given = os.environ.get(CACHE_VARIABLE, "").split(":")[0]
    if given:
        return given
    if os.geteuid() == 0:
        return "/var/cache/sandboxlib-worker"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(home, "sandboxlib-worker")


#: The tables of the file, with the name of the flag that takes one NAME=VALUE of each.
TABLES = {"sandbox": "sandbox", "properties": "property"}

KEYS = (
    Key("server", "URL", _url, None, "the server that gives leases: grpc://, grpcs:// or unix://"),
    Key("cas", "URL", _optional_url, "", "the server of files, if it is another one"),
    Key("instance", "NAME", _text, "", "the instance of the server"),
    Key("token", "FILE", _optional_path, "", "a file with a JWT, read again when it changes"),
    Key("ca", "FILE", _optional_path, "", "certificates (PEM) of who signed the server's"),
    Key(
        "cert", "FILE", _optional_path, "", "our certificate (PEM), for a server that asks for one"
    ),
    Key("key", "FILE", _optional_path, "", "the key (PEM) of cert"),
    Key(
        "name", "NAME", _name, socket.gethostname, "the name of this worker, of which there is one"
    ),
    Key("slots", "N", _count, _slots, "leases at once; as many as CPUs by default"),
    Key("cache", "DIR", _path, _cache, "the directory of the local cache"),
    Key("cache_size", "SIZE", _size, "10G", "the most bytes that the cache keeps"),
    Key("poll", "SECONDS", _at_least(4), 60, "how long an idle worker waits for work in one call"),
    Key("heartbeat", "SECONDS", _at_least(1), 5, "how often a busy worker asks what was cancelled"),
    Key("timeout", "SECONDS", _at_least(1), 3600, "the timeout of an action that has none"),
    Key("max_timeout", "SECONDS", _at_least(1), 86400, "an action may ask for this at most"),
    Key("drain_timeout", "SECONDS", _seconds, 60, "after SIGTERM, how long running actions have"),
    Key("metrics", "HOST:PORT", _address, "", "the page /metrics for Prometheus; none by default"),
    Key("statsd", "HOST:PORT", _address, "", "where figures are sent as statsd datagrams"),
    Key("statsd_tags", "FORM", _choice(metrics.TAGS), metrics.TAGS[0], "how statsd gets labels"),
    Key("log_format", "FORM", _choice(logs.FORMATS), "logfmt", "a line of the log: logfmt or json"),
    Key("log_level", "LEVEL", _choice(logs.LEVELS), "info", "debug, info, warning or error"),
)


def print_config(config: Config) -> str:
    """The configuration as TOML, which read_config takes back."""
    lines = [f"{key.name} = {_toml_text(getattr(config, key.name))}" for key in KEYS]
    for name in TABLES:
        lines += ["", f"[{name}]"]
        table = getattr(config, name)
        lines += [f"{_toml_text(key)} = {_toml_text(value)}" for key, value in table.items()]
    assert {each.name for each in fields(config)} == {key.name for key in KEYS} | set(TABLES)
    return "\n".join(lines) + "\n"


def _toml_text(value: Any) -> str:
    """A value of the file as TOML: text, numbers, lists and inline tables of them."""
    if isinstance(value, dict):
        pairs = (f"{_toml_text(key)} = {_toml_text(each)}" for key, each in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_text, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str):
        # TOML's escapes are those of JSON, but for DEL, which JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value) if isinstance(value, (bool, int)) else str(value)
