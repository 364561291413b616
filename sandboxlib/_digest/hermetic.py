# SPDX-License-Identifier: Apache-2.0
"""What of a Command in a Sandbox has no digest, since it depends on the caller or the machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .._spec.command import Command
from .._spec.overlay import Overlay
from .._spec.spec import Spec
from .._spec.user import User
from .._values import short
from ..errors import SpecChoiceError, SpecError, SpecTypeError

#: What not_hermetic() may name, and `assume` may have: fields of a Sandbox, an Overlay, a Command.
NAMES = tuple(
    "root layers upper network mounts processes ipc hostname extra_mounts devices resolv_conf "
    "user umask cwd stdin pass_fds pty".split()
)


def not_hermetic(command: Command, box: Spec, assume: Iterable[str] = ()) -> dict[str, str]:
    """The reasons by names. SpecError if `assume` has a name that is none of NAMES."""
    assumed = check_assume(assume)
    reasons: dict[str, list[str]] = {}
    for name, reason in (*_of_sandbox(box), *_of_command(command, box)):
        if name not in assumed:
            reasons.setdefault(name, []).append(reason)
    return {name: "; ".join(each) for name, each in reasons.items()}


def user_of(box: Spec) -> object:
    """Whose ids the command has. Those of an image are its own, whoever the caller is: uid and gid
    as the command sees them.
    """
    defaults = box._defaults() if "user" in box._left else None
    if defaults is None:
        return box.user
    user = defaults.user
    return {"image": [user.uid, user.gid] if isinstance(user, User) else [0, 0]}


def refuse(command: Command, box: Spec, assume: Iterable[str]) -> None:
    """SpecError that names all of not_hermetic()."""
    if reasons := not_hermetic(command, box, assume):
        text = "\n".join(f"  {name}: {reason}" for name, reason in reasons.items())
        remedy = f"assume={[*reasons]!r} says that you know them to be the same everywhere"
        raise SpecError(f"{command} depends on what has no digest:\n{text}\n{remedy}")


def check_assume(value: Iterable[str]) -> frozenset[str]:
    """The names of `assume`. SpecError for others."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise SpecTypeError(f"assume is no list of names: {short(value)}; one is [{value!r}]")
    names = list(value)
    for name in names:
        if name not in NAMES:
            text = f"assume has {name!r}, and may have of {', '.join(NAMES)}"
            raise SpecChoiceError(text)
    return frozenset(names)


def _of_sandbox(box: Spec) -> Iterator[tuple[str, str]]:
    for name, kind in box.isolation().items():
        if kind == "undefined":
            yield name, f"{name}='undefined' shows the command what this machine has"
    yield from _of_root(box)
    for mount in box.extra_mounts:
        if mount.type == "bind":
            text = f"{mount.target} is {mount.source} of this machine"
            yield "extra_mounts", f"{text}; inputs= has a digest of its content"
    if box.devices != "minimal":
        text = "the root's devices are" if box.devices == "root" else f"{list(box.devices)} are"
        yield "devices", f"{text} the machine's"
    if box.resolv_conf:
        yield "resolv_conf", "the file is this machine's"
    if user_of(box) == "caller":
        yield "user", "the ids are the caller's; user=1000 or 'root' names others"
    if box.deterministic:
        return
    if box.umask is None:
        yield "umask", "it is the caller's; umask=0o022 or deterministic=True sets one"
    if box.hostname is None:
        text = "it is this machine's; hostname='sandbox' or deterministic=True sets one"
        yield "hostname", text


def _of_root(box: Spec) -> Iterator[tuple[str, str]]:
    overlay = box._overlay
    if not isinstance(overlay, Overlay):
        remedy = f"Overlay(Layer.from_directory({box._directory!r})) has one"
        yield "root", f"{box._directory} is a directory, whose content has no digest; {remedy}"
        return
    for layer in overlay.layers:
        if isinstance(layer, str):
            remedy = f"Layer.from_directory({layer!r}) has one"
            yield "layers", f"{layer} is a directory, whose content has no digest; {remedy}"
    if overlay.upper is not None:
        yield "upper", f"earlier runs left their changes in {overlay.upper}"


def _of_command(command: Command, box: Spec) -> Iterator[tuple[str, str]]:
    if command.cwd is None and box._directory == "/":
        yield "cwd", "it is the caller's directory, as the root is '/'"
    if not (command.stdin is None or type(command.stdin) is bytes):
        yield "stdin", "it is a file or a descriptor; bytes have a digest"
    if command.pass_fds:
        yield "pass_fds", f"what the descriptors {list(command.pass_fds)} are is not known"
    if command.pty:
        yield "pty", "what arrives at a terminal depends on times"
