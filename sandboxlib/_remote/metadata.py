# SPDX-License-Identifier: Apache-2.0
"""What an ActionResult says of the run beside its outputs: usage, signal, isolation.

It is in the auxiliary_metadata, as a google.protobuf.Struct with the fields of our Usage by their
names, and `wall`, `executor`, `signal` (the number of the signal that ended the command),
`limits_hit` and `isolation` as in Result.
"""

from __future__ import annotations

from ..result import Result, Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST_TEXT = 200  # characters of a word that a server may say
_WORDS = ("network", "mounts", "processes", "ipc", "seccomp")


class Told:
    """What the metadata say. exit: as in Result. usage: Usage, or None. limits_hit, isolation,
    worker: as in Result.
    """

    def __init__(self, message: Any) -> None:
        fields = _fields(message)
        self.exit: int = message.exit_code
        signal = fields.get("signal")
        if isinstance(signal, float) and message.exit_code == 128 + signal and 0 < signal < 128:
            self.exit = -int(signal)
        self.usage = _usage(fields)
        self.worker: str = message.execution_metadata.worker[:_MOST_TEXT]
        hit = fields.get("limits_hit")
        self.limits_hit = tuple(map(str, hit)) if isinstance(hit, list) else ()
        told = fields.get("isolation")
        words = told if isinstance(told, dict) else {}
        self.isolation = {name: str(words[name])[:_MOST_TEXT] for name in _WORDS if name in words}


def exit_code(result: Result) -> int:
    """The exit status as the API has it: 128 + n for signal n, as shells have it."""
    return 128 - result.exit if result.exit < 0 else result.exit


def fill_metadata(metadata: Any, result: Result) -> None:
    """Adds what a run says to an ExecutedActionMetadata."""
    from .stubs import struct_pb

    told: dict[str, Any] = {"wall": result.wall, "executor": result.executor}
    if result.exit < 0:
        told["signal"] = -result.exit
    if result.limits_hit:
        told["limits_hit"] = list(result.limits_hit)
    if result.isolation:
        told["isolation"] = dict(result.isolation)
    if (usage := result.usage) is not None:
        told |= {
            name: value for name, value in usage.__dict__.items() if isinstance(value, (int, float))
        }
    struct = struct_pb.Struct()
    struct.update(told)
    metadata.auxiliary_metadata.add().Pack(struct)


def _fields(message: Any) -> dict[str, Any]:
    """The fields of the Struct: numbers as float, words as str, lists and objects of words."""
    from .stubs import message as base
    from .stubs import struct_pb

    for each in message.execution_metadata.auxiliary_metadata:
        if each.Is(struct_pb.Struct.DESCRIPTOR):
            struct = struct_pb.Struct()
            try:
                each.Unpack(struct)
            except base.DecodeError:
                return {}
            return {name: _value(value) for name, value in struct.fields.items()}
    return {}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        return [each.string_value for each in value.list_value.values]
    if kind == "struct_value":
        return {name: each.string_value for name, each in value.struct_value.fields.items()}
    return None if kind in (None, "null_value") else getattr(value, kind)


def _usage(fields: dict[str, Any]) -> Usage | None:
    usage = Usage(b"")
    known = False
    for name in usage.__dict__:
        value = fields.get(name)
        if isinstance(value, float) and abs(value) < 1 << 62:
            is_seconds = name in ("user", "system", "cpu")
            setattr(usage, name, value if is_seconds else int(value))
            known = True
    return usage if known else None
