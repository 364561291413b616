# SPDX-License-Identifier: Apache-2.0
"""bwrap(1): what the installed one can do, what to tell it, and a look at what it did.

bwrap resolves names while commands of other runs may rename things in the same root. Two measures
make that safe, and neither believes bwrap:

 - The look. bwrap waits for the seccomp program, which it reads after its last mount. Meanwhile
   /proc/PID/mountinfo tells what is mounted, where, and where it comes from. Only if this is
   exactly what was meant the program is written, and the command starts. If the caller is killed
   first, bwrap reads half a program, which the kernel refuses.
 - The stage. Up to bwrap 0.11 a symbolic link in a target leads to the machine's own directories,
   where bwrap creates what is missing. So the sources are bound to a place outside of the new root
   first, and an empty tmpfs covers the machine's directories before any target is resolved. Newer
   versions resolve targets inside the new root, and need no stage.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence

from .. import errors
from .._core import native
from .._host import machine
from .._runs import explain, mounts
from .._runs.mount_points import Stubs
from .._spec.mount import Mount
from .._spec.spec import Spec
from ..errors import UnsupportedError
from .bwrap_look import BindSource, Wanted, is_below, table
from .bwrap_tool import Descriptors, Tool
from .view import View, doing

#: uid 0 may write these without any capability, and the kernel obeys (proc(5)).
_COVERED = "sys sysrq-trigger irq bus fs scsi acpi asound dynamic_debug latency_stats".split()
_HERE, _ROOT, _DEV = "\0here", "\0root", "\0dev"  # words that stand for others


# ---- what bwrap is told ----------------------------------------------------------------------


class Layout:
    """The mounts of one run: the options for bwrap, and what has to be found afterwards."""

    def __init__(
        self,
        box: Spec,
        tool: Tool,
        covers: bool,
        descriptors: Descriptors,
        undo: contextlib.ExitStack,
        deadline: float | None,
    ) -> None:
        """covers: the parts of /proc become read-only by which uid 0 commands the kernel.
        descriptors: takes those that bwrap is to inherit.
        """
        self._box, self._tool, self._undo = box, tool, undo
        self._descriptors = descriptors
        self._covers = covers
        self._entries = table()
        self._root_fd = self._open(box.root, "root", f"Unable to chroot: open the root {box.root}")
        root = self._place(self._root_fd)
        self._view = View(root.path)
        self._stubs = Stubs(root.path, deadline)
        undo.callback(self._stubs.release)
        self._options: list[str] = []  # that resolve targets
        self._sources: dict[str, list[str]] = {}  # path: the option that binds it to _HERE
        is_read_only = box.filesystem_writable_paths != "all"
        hides_devices = box.mounts == "isolated" and box.devices != "root"
        writable_root = "--bind" if hides_devices else "--dev-bind"
        self._first = ["--ro-bind" if is_read_only else writable_root, root.path, "/"]
        self._unnamed: dict[str, list[str]] = {}  # the same for what has no name to be bound by
        self.wanted = [Wanted("/", root, read_only=is_read_only)]
        writable = box.filesystem_writable_paths
        for path in writable if isinstance(writable, tuple) else ():
            self._add_hole(path)
        if covers:
            self._seal()
        if self._has_own_proc():
            self._add_proc("/proc")
        if hides_devices and self._has_own_dev():
            self._add_mount(Mount.dev(), "minimal")
        if self._has_own_tmp():
            self._add_mount(Mount.tmpfs("/tmp"), "private")
        if (resolver := mounts.resolver_of(box)) is not None:
            self._add_mount(resolver, "resolv_conf")
        for index, mount in enumerate(box.extra_mounts):
            self._add_mount(mount, f"mount {index}")

    def options(self) -> list[str]:
        """In their order: what stands outside of the root, and after it all that needs the root."""
        if not self._tool.is_staged:
            return [*self._first, *self._options]
        stage = f"/{os.urandom(16).hex()}"  # a name that no command finds
        sources, aliases = self._staged()
        argv, links = [], []
        for number, (path, option) in enumerate(sources.items()):
            name = f"{stage}/{number}"
            argv += [word.replace(_HERE, f"/..{name}") for word in option]
            links += ["--symlink", name, f"/../oldroot{path}"]
        options = [aliases.get(word, word) for word in self._options]
        return [*self._first, *argv, "--tmpfs", "/../oldroot", *links, *options]

    def _staged(self) -> tuple[dict[str, list[str]], dict[str, str]]:
        """Names on the host, with the options that make what is found there behind the stage; and
        the names that stand for things without one.
        """
        named = {path: option for path, option in self._sources.items() if path != "/"}
        if not any(is_below(path, "/proc") for path in named):
            # bwrap looks there for its own descriptors. Its files are also what covers /proc.
            is_new = self._box.processes == "isolated"
            named["/proc"] = ["--proc", _HERE] if is_new else ["--dev-bind", "/proc", _HERE]
        else:
            named.setdefault("/proc", ["--dev-bind", "/proc", _HERE])
        found: dict[str, list[str]] = {}
        for path in sorted(named, key=lambda name: name.split("/")):
            above = next((other for other in found if is_below(path, other)), None)
            if above is None:
                found[path] = named[path]
            elif found[above][0] == "--ro-bind" != named[path][0]:
                found[above] = ["--bind", above, _HERE]
        # bwrap wants a name that is there on the host: any that is not needed otherwise.
        free = [
            name
            for name in ("/dev", self._tool.path, "/sys", "/usr", "/etc", "/var", "/home")
            if os.path.exists(name)
            and machine.real_path(name) == name
            and not any(is_below(name, path) or is_below(path, name) for path in found)
        ]
        aliases = dict(zip(self._unnamed, free, strict=False))
        if len(aliases) < len(self._unnamed):
            raise UnsupportedError(f"{self._tool.path} cannot bind so much of the machine safely")
        return {**found, **{aliases[key]: self._unnamed[key] for key in aliases}}, aliases

    def has_directory(self, path: str) -> bool:
        """Whether the command finds such a directory."""
        return self._view.has_directory(path)

    # -- the parts

    def _open(self, path: str, step: str, what: str) -> int:
        with doing(path, step, what):
            flags = os.O_DIRECTORY if step == "root" else 0
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC | flags)
        self._undo.callback(os.close, fd)
        return fd

    def _place(self, fd: int) -> BindSource:
        return BindSource(fd, self._entries)

    def _bind(self, option: str, source: BindSource, target: str, fd: int = -1) -> None:
        path = source.path
        if self._sources.get(path, ["--ro-bind"])[0] == "--ro-bind":
            self._sources[path] = [option, path, _HERE]
        if path == "/":
            self._unnamed[_ROOT] = self._sources[path]
        option_args = [option, _ROOT if path == "/" and self._tool.is_staged else path]
        # One is kept for the options.
        if fd >= 0 and self._tool.binds_descriptors and self._descriptors.has_room(1):
            by_descriptor = ["--bind-fd", self._descriptors.take(fd)]
            if self._tool.is_staged:
                self._sources[path] = [*by_descriptor, _HERE]
            else:
                option_args = by_descriptor
        self._options += [*option_args, target]
        self.wanted.append(Wanted(target, source, read_only=option == "--ro-bind"))

    def _add_hole(self, path: str) -> None:
        with doing(path, "target", f"writable path {path}: target"):
            fd = native.open_in_root(self._root_fd, path, os.O_PATH | os.O_CLOEXEC)
        self._undo.callback(os.close, fd)
        source = self._place(fd)
        root = self._view.over["/"] or "/"
        if source.path == root or not is_below(source.path, root):
            raise self._error(path, "target", errno.EBUSY, f"writable path {path}: target")
        self._bind("--bind", source, source.path[len(root.rstrip("/")) :], fd)

    def _seal(self) -> None:
        """What the root shows of the host's kernel becomes read-only, as in _runs/plan.py."""
        paths = mounts.seal_paths(self._view.over["/"] or "/", "/", ())
        proc = self._view.host("/proc")
        if self._box.processes == "undefined" and proc is not None and os.path.ismount(proc):
            paths += [f"/proc/{name}" for name in _COVERED if os.path.exists(f"{proc}/{name}")]
        self._seal_each(paths)

    def _seal_each(self, paths: Sequence[str]) -> None:
        for path in paths:
            host = self._view.host(path)
            if host is not None and (os.path.ismount(host) or path.startswith("/proc/")):
                fd = self._open(host, "mount", f"seal {path}")
                self._bind("--ro-bind", self._place(fd), path)

    def _has_own_proc(self) -> bool:
        asked = any(mount.target == "/proc" for mount in self._box.extra_mounts)
        if self._box.processes != "isolated" or asked:
            return False
        return os.path.isdir(self._view.find("/proc") or "")

    def _has_own_dev(self) -> bool:
        return self._has_own("/dev")

    def _has_own_tmp(self) -> bool:
        return self._box.tmp == "private" and self._has_own("/tmp")

    def _has_own(self, path: str) -> bool:
        """Whether the sandbox mounts there: unless an extra mount does, if the root has such a
        directory, or an extra mount goes into it.
        """
        targets = [mount.target for mount in self._box.extra_mounts]
        if path in targets:
            return False
        is_there = os.path.isdir(self._view.find(path) or "")
        return is_there or any(is_below(target, path) for target in targets)

    def _add_proc(self, target: str) -> None:
        inside = self._target(target, True, "proc on /proc")
        self._options += ["--proc", inside]
        is_new = self._box.processes == "isolated"
        self.wanted.append(Wanted(inside, type="proc", is_new=is_new))
        self._view.put(inside, None)
        for name in _COVERED if self._covers else ():
            if os.path.exists(f"/proc/{name}"):
                self._options += ["--ro-bind", f"/proc/{name}", f"{inside}/{name}"]

    def _add_mount(self, mount: Mount, name: str) -> None:
        what = f"{name}: {f'bind {mount.source}' if mount.source else mount.type} on {mount.target}"
        if mount.type == "proc":
            self._add_proc(mount.target)
            return
        if mount.source is not None:
            fd = self._open(mount.source, "source", f"{what}: source")
            source = self._place(fd)
            inside = self._target(mount.target, os.path.isdir(source.path), what)
            is_sealed = self._covers and mounts.is_of_the_kernel(source.path)
            option = "--ro-bind" if mount.read_only or is_sealed else "--bind"
            self._bind(option, source, inside)
            self._view.put(inside, source.path)
            if self._covers and mount.recursive and not is_sealed:
                self._seal_each(mounts.seal_paths(source.path, inside, ()))
            return
        inside = self._target(mount.target, True, what)
        if mount.type == "tmpfs":
            size = ["--size", str(mount.size)] if mount.size else []
            self._options += ["--perms", f"{mount.mode:o}", *size, "--tmpfs", inside]
        else:
            self._unnamed[_DEV] = _minimal_dev(_HERE)
            is_staged = self._tool.is_staged
            self._options += ["--dev-bind", _DEV, inside] if is_staged else _minimal_dev(inside)
        self.wanted.append(Wanted(inside, type=mount.type))
        self._view.put(inside, None)

    def _target(self, path: str, is_directory: bool, what: str) -> str:
        """Where a mount goes, without symbolic links; made for the run where it is missing."""
        with doing(path, "target", f"{what}: make the mount point"):
            inside = self._view.resolve(path)
            if inside == "/":
                raise OSError(errno.EBUSY, "the root itself")
            at = self._view.mount_of(inside)
            host = self._view.host(inside)
            if at == "/":
                self._stubs.hold(path, is_directory)
            elif host is not None:
                os.stat(host)  # bwrap would make it in the source, and leave it there
        return inside

    def _error(self, path: str, step: str, number: int, what: str) -> errors.SetupError:
        return errors.setup_error(number, path, step, what, explain.hint(step, 0, number))


def _minimal_dev(target: str) -> list[str]:
    """With a shm as others have it, of the kernel's default size."""
    return ["--dev", target, "--perms", "1777", "--tmpfs", f"{target}/shm"]
