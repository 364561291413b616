# SPDX-License-Identifier: Apache-2.0
"""Portable actions: Commands as any worker of the Remote Execution API runs them, and the reasons
why another one takes workers of sandboxlib.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from .. import _reapi
from .._inputs.placing import Wanted
from .._inputs.snapshot import Folder, Link, Node, encoded, put
from .._inputs.tree import Tree, node_of
from .._spec.command import Command, whole_environment
from .._spec.inputs import inside
from .._spec.overlay import Overlay
from .._spec.spec import Spec
from .._spec.streams import STDOUT
from ..errors import UnsupportedError

#: The property of a platform by which workers of sandboxlib announce themselves.
OURS = "sandboxlib"
_PLAIN = Spec(Overlay())

#: Fields of a Sandbox that a portable worker decides for itself, and what their defaults are.
_OF_THE_WORKER = (
    *("network", "mounts", "processes", "ipc", "hostname", "filesystem_writable_paths"),
    *("devices", "policy", "init", "user", "umask", "limits", "deterministic", "tmp"),
    *("resolv_conf", "personality"),
)


class Sent:
    """An action as it goes to a server.

    action: str, its digest. folders: the directories that it names. blobs: the Action, the Command
    and what else it names, by digests: bytes, or the path of a file.
    """

    def __init__(
        self, action: str, folders: Iterable[Folder], blobs: Mapping[str, bytes | str]
    ) -> None:
        self.action, self.folders, self.blobs = action, tuple(folders), blobs


def portable(
    command: Command,
    box: Spec,
    base: Folder,
    platform: Mapping[str, str],
    do_not_cache: bool = False,
) -> Sent:
    """The portable action of a Command in a Sandbox. UnsupportedError, which names all that a
    portable worker cannot keep, and what to do.

    base: from base_of().
    """
    refuse(command, box)
    cwd = box._cwd_of(command) or "/"
    root = _root(command, base, cwd)
    variables = whole_environment(command.extra_env, box._env_of(command))
    message = _reapi.command(
        command._argv,
        {os.fsencode(name): os.fsencode(value) for name, value in variables.items()},
        [os.fsencode(path) for path in asked(command, cwd)],
        os.fsencode(cwd).strip(b"/"),
    )
    return sent(message, root, command.timeout, b"", platform, do_not_cache)


def asked(command: Command, cwd: str | None) -> list[str]:
    """The paths of outputs that a worker is asked for, from the directory of the command on. They
    have no wildcards: of a pattern it is the directory that no wildcard touches.
    """
    above = cwd or "/"
    return [_below(Wanted(pattern, cwd).fixed, above) for pattern in command.outputs]


def sent(
    message: bytes,
    root: Folder,
    timeout: float | None,
    salt: bytes,
    platform: Mapping[str, str],
    do_not_cache: bool,
) -> Sent:
    """The action of a Command message and a root."""
    name = _reapi.digest_of(message)
    pairs = [(key.encode(), value.encode()) for key, value in platform.items()]
    properties = _reapi.platform(pairs)
    action = _reapi.action(name, encoded(root), timeout, salt, properties, do_not_cache)
    digest = _reapi.digest_of(action)
    return Sent(digest, [root], {digest: action, name: message})


# ---- what is portable ------------------------------------------------------------------------


def refuse(command: Command, box: Spec) -> None:
    """UnsupportedError that lists what a portable worker cannot keep."""
    reasons = [*_of_box(box), *_of_command(command, box)]
    if reasons:
        lines = "\n".join(f"  {name}: {reason}" for name, reason in reasons)
        remedy = "Remote(..., platform={'sandboxlib': '1'}) asks for workers of sandboxlib"
        text = f"{command} asks for what a portable worker cannot keep:\n{lines}"
        raise UnsupportedError(f"{text}\n{remedy}, which keep what is no business of this machine")


def _of_box(box: Spec) -> Iterator[tuple[str, str]]:
    overlay = box._overlay
    if overlay is None:
        yield "root", f"{box._directory} is a directory of this machine; Overlay(Tree(...)) is sent"
    elif overlay.upper is not None:
        yield "upper", "a worker begins without changes; leave it out"
    for layer in () if overlay is None else overlay.layers:
        if not isinstance(layer, Tree):
            remedy = "Overlay() has the worker's own root, Overlay(Tree(...)) sends one"
            yield "layers", f"{layer!r} may have owners, modes and times; {remedy}"
    for mount in box.extra_mounts:
        yield "extra_mounts", f"{mount.target} is mounted here alone; inputs= are sent"
    for name in _OF_THE_WORKER:
        value, default = getattr(box, name), getattr(_PLAIN, name)
        if value != default:
            yield name, f"{value!r} is for the worker to decide; leave it out"


def _of_command(command: Command, box: Spec) -> Iterator[tuple[str, str]]:
    if command.stdin is not None:
        yield "stdin", "the API has none; inputs={'input': ...} and sh -c 'prog < input'"
    if type(command.stderr) is int and command.stderr == STDOUT:
        yield "stderr", "STDOUT makes two streams one; sh -c 'prog 2>&1' does so"
    if command.executable is not None:
        yield "executable", "the API has argv alone; sh -c 'exec -a NAME prog' where that is known"
    if command.limits is not None:
        yield "limits", "they are for the worker to decide; leave them out"
    cwd = box._cwd_of(command) or "/"
    for what, paths in (("inputs", command.inputs), ("outputs", command.outputs)):
        for path in paths:
            if _below(inside(path, cwd), cwd).startswith("/"):
                yield what, f"{path} lies outside of the directory of the command, {cwd}; cwd='/'"


def unsent(command: Command) -> Iterator[tuple[str, str]]:
    """What no worker can keep, as it means something in this process alone, or at once."""
    if command.changes != "drop":
        yield "changes", "they stay at the worker; outputs= come back"
    if command.grace:
        yield "grace", "a worker ends a command at once; leave it out"
    if command.on_overflow == "kill":
        yield "on_overflow", "the output is seen too late to end the command; 'truncate' cuts it"
    if command.pty:
        yield "pty", "a worker has no terminal; leave it out"
    if command.pass_fds:
        yield "pass_fds", "descriptors belong to this process; inputs= are sent"
    if not (command.stdin is None or type(command.stdin) is bytes):
        yield "stdin", "a file or a descriptor belongs to this process; bytes are sent"


def _below(path: str, cwd: str) -> str:
    """A path from the directory of the command on; as it is if it lies elsewhere."""
    if path == cwd:
        return ""
    return path.removeprefix(cwd.rstrip("/") + "/").lstrip("/" if cwd == "/" else "")


# ---- the inputs ------------------------------------------------------------------------------


def base_of(box: Spec) -> Folder:
    """The layers of a Sandbox as one directory, which nobody changes."""
    base = Folder()
    for layer in () if box._overlay is None else box._overlay.layers:
        if isinstance(layer, Tree):
            base = _over(base, layer._snapshot()[0])
    return base


def _root(command: Command, base: Folder, cwd: str) -> Folder:
    """The directory that a worker lays out: the layers, the inputs, and the directories that are
    made before the run.
    """
    root = Folder(base)
    own = {id(root)}
    places = {inside(path, cwd): value for path, value in command.inputs.items()}
    for path in sorted(places, key=lambda path: (path.count("/"), path)):
        put(root, path, node_of(places[path]), own)
    for path in (cwd, *(Wanted(pattern, cwd).parent for pattern in command.outputs)):
        _make(root, path, own)
    return root


def _over(lower: Folder, upper: Folder) -> Folder:
    """Two layers as one: directories of the same name are merged, everything else is replaced."""
    both = Folder(lower)
    for name, node in upper.items():
        below = both.get(name)
        if isinstance(below, Folder) and isinstance(node, Folder):
            both[name] = _over(below, node)
        else:
            both[name] = node
    return both


def _make(root: Folder, path: str, own: set[int]) -> None:
    """An empty directory, unless the root has something there: a link, or a file on the way, is for
    the worker to follow or to refuse.
    """
    at: Node | None = root
    for part in os.fsencode(path).strip(b"/").split(b"/"):
        if not isinstance(at, Folder):
            break
        at = at.get(part) if part else at
    if at is None:
        put(root, path, Folder(), own)


# ---- names -----------------------------------------------------------------------------------


def check_names(folder: Folder, above: bytes = b"") -> None:
    """UnsupportedError for a name, or the target of a link, that is not UTF-8: the messages of the
    API have no others. A Folder that was looked at is not looked at again.
    """
    for name, node in folder.items():
        texts = [name, node.target] if isinstance(node, Link) else [name]
        for text in texts:
            _check_text(f"the input {os.fsdecode(above + b'/' + name)!r}", text)
        if isinstance(node, Folder):
            check_names(node, above + b"/" + name)


def _check_text(what: str, text: bytes) -> None:
    try:
        text.decode()
    except UnicodeDecodeError:
        raise UnsupportedError(f"{what} is not UTF-8: {text!r}; the API has no other") from None
