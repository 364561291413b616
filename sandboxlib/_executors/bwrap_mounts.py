# SPDX-License-Identifier: Apache-2.0
"""Layout: the mounts of a run as options for bwrap(1), and as the list to compare them with.

bwrap resolves names while commands of other runs may rename files in the same root. Two measures
make that safe without trusting bwrap:

 - The look (bwrap_look.py). bwrap waits for the seccomp program, which it reads after its last
   mount. Meanwhile we compare /proc/PID/mountinfo with the mounts that we asked for. Only if they
   are exactly the same, we write the program, and the command starts. If the caller is killed
   first, bwrap reads half a program, which the kernel refuses.
 - The stage. Up to bwrap 0.11 a symbolic link in a target leads to the machine's own directories,
   where bwrap creates missing directories. So the options first bind the sources to a directory
   outside of the new root, and cover the machine's directories with an empty tmpfs, before bwrap
   resolves any target. Newer versions resolve targets inside the new root, and need no stage.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence

from .. import errors
from .._core import native
from .._host import machine
from .._host.machine import is_below
from .._runs import explain, mounts
from .._runs.mount_points import Stubs
from .._spec.mount import Mount, hidden
from .._spec.spec import Spec
from ..errors import UnsupportedError
from . import bwrap_overlay
from .bwrap_entries import Entries
from .bwrap_look import BindSource, Wanted, table
from .bwrap_tool import Descriptors, Tool
from .view import View, doing

_MANY = 16  # sources in one directory, from which on the stage has the directory
#: Parts of /proc by which uid 0 commands the kernel, without any capability (proc(5)).
_COVERED = "sys sysrq-trigger irq bus fs scsi acpi asound dynamic_debug latency_stats".split()
_HERE, _ROOT, _DEV = "\0here", "\0root", "\0dev"  # placeholders that options() replaces


# ---- the options of bwrap ----------------------------------------------------------------------


class Layout:
    """The mounts of one run: the options for bwrap, and in `wanted` the mounts that must result.

    hides_devices: bool, whether no device of the root may open.
    """

    def __init__(
        self,
        box: Spec,
        tool: Tool,
        covers: bool,
        descriptors: Descriptors,
        undo: contextlib.ExitStack,
        deadline: float | None,
    ) -> None:
        """covers: bool, whether _COVERED becomes read-only.
        descriptors: collects the descriptors that bwrap has to inherit.
        """
        self._box, self._tool, self._undo = box, tool, undo
        self._descriptors = descriptors
        self._covers = covers
        self._entries = table()
        self._options: list[str] = []  # the options whose targets bwrap resolves
        self._sources: dict[str, list[str]] = {}  # path: the option that binds it to _HERE
        self._unnamed: dict[str, list[str]] = {}  # the same for _ROOT and _DEV, which have no path
        self._layers: dict[str, list[str]] = {}  # the same for layers, by their descriptors
        self._first: list[str] = []  # those that mount the root, if it is no overlay
        self._stubs: Stubs | None = None  # in a root of layers bwrap makes them, in the upper
        self.wanted: list[Wanted] = []
        self._is_read_only = box.filesystem_writable_paths != "all"
        self.hides_devices = box.mounts == "isolated" and box.devices != "root"
        if box._overlay is None:
            self._put_directory(box._directory, deadline)
        else:
            self._put_overlay()
        for path in mounts.holes_of(box):
            self._add_hole(path)
        if covers and box._overlay is None:
            self._seal()
        self._made = Entries(box, self._view, descriptors, undo)
        asked = sorted(
            enumerate(box.extra_mounts), key=lambda pair: not mounts.is_for_ours(pair[1])
        )
        first = [pair for pair in asked if mounts.is_for_ours(pair[1])]
        for index, mount in first:
            self._add_mount(mount, f"mount {index}")
        if self._has_own_proc():
            self._add_proc("/proc")
        if self.hides_devices and self._has_own_dev():
            self._add_mount(Mount.dev(), "minimal")
        if self._has_own_tmp():
            self._add_mount(Mount.tmpfs("/tmp"), "private")
        if (resolver := mounts.resolver_of(box)) is not None:
            self._add_mount(resolver, "resolv_conf")
        for index, mount in asked[len(first) :]:
            self._add_mount(mount, f"mount {index}")
        self.wanted += self._made.wanted

    def options(self) -> list[str]:
        """The options, in order: first those outside of the new root, then those inside."""
        last = ["--remount-ro", "/"] if self._is_read_only and self._box._overlay else []
        if not self._tool.is_staged:
            return [*self._first, *self._options, *last]
        stage = f"/{os.urandom(16).hex()}"  # a name that no command can guess
        sources, aliases = self._staged()
        argv, links = [], []
        for number, (path, option) in enumerate(sources.items()):
            name = f"{stage}/{number}"
            argv += [arg.replace(_HERE, f"/..{name}") for arg in option]
            links += ["--symlink", name, f"/../oldroot{path}"]
        options = [aliases.get(arg, arg) for arg in self._options]
        return [*self._first, *argv, "--tmpfs", "/../oldroot", *links, *options, *last]

    def _staged(self) -> tuple[dict[str, list[str]], dict[str, str]]:
        """Paths of the host, each with the option that binds it to the stage; and the paths that
        replace the placeholders _ROOT and _DEV.
        """
        others = {
            path: option
            for path, option in self._sources.items()
            if path != "/" and path not in self._layers
        }
        bwrap_overlay.check_places([*self._layers], [*others])
        named = {**_shared(others), **self._layers}
        if not any(is_below(path, "/proc") for path in named):
            # bwrap looks up its own descriptors in /proc, and binds files of it over /proc itself.
            is_new = self._box.processes == "isolated"
            named["/proc"] = ["--proc", _HERE] if is_new else ["--dev-bind", "/proc", _HERE]
        else:
            named.setdefault("/proc", ["--dev-bind", "/proc", _HERE])
        staged: dict[str, list[str]] = {}
        for path in sorted(named, key=lambda name: name.split("/")):
            above = next((other for other in staged if is_below(path, other)), None)
            if above is None:
                staged[path] = named[path]
            elif staged[above][0] == "--ro-bind" != named[path][0]:
                staged[above] = ["--bind", above, _HERE]
        # bwrap requires a path that exists on the host: take any that has no other use.
        free = [
            name
            for name in ("/dev", self._tool.path, "/sys", "/usr", "/etc", "/var", "/home")
            if os.path.exists(name)
            and machine.real_path(name) == name
            and not any(is_below(name, path) or is_below(path, name) for path in staged)
        ]
        aliases = dict(zip(self._unnamed, free, strict=False))
        if len(aliases) < len(self._unnamed):
            raise UnsupportedError(f"{self._tool.path} cannot bind so much of the machine safely")
        return {**staged, **{aliases[key]: self._unnamed[key] for key in aliases}}, aliases

    def find(self, path: str) -> str | None:
        """The path of the caller's of a path inside; "" if only the run has it, None if it is not
        there.
        """
        return self._view.find(path)

    def has_directory(self, path: str) -> bool:
        """Whether the command will see such a directory."""
        return self._view.has_directory(path)

    def has_proc(self) -> bool:
        """Whether /proc inside is a proc: one of the run's own, or the caller's."""
        host = self._view.find("/proc")
        if host == "":
            return any(mount.target == "/proc" and mount.type == "proc" for mount in self.wanted)
        with contextlib.suppress(OSError):
            return host is not None and os.path.samefile(host, "/proc") and os.path.ismount(host)
        return False

    # -- the parts

    def _put_directory(self, path: str, deadline: float | None) -> None:
        self._root_fd = self._open(path, "root", f"Unable to chroot: open the root {path}")
        root = self._place(self._root_fd)
        self._view = View(root.path)
        self._stubs = Stubs(root.path, deadline)
        self._undo.callback(self._stubs.release)
        writable = "--bind" if self.hides_devices else "--dev-bind"
        self._first = ["--ro-bind" if self._is_read_only else writable, root.path, "/"]
        self.wanted.append(Wanted("/", root, read_only=self._is_read_only))

    def _put_overlay(self) -> None:
        self._lowers = bwrap_overlay.stacked(self._box)  # kept for their leases
        if not self._lowers:
            self._view = View(None)
            self._first = ["--perms", "755", "--tmpfs", "/"]
            self.wanted.append(Wanted("/", type="tmpfs", read_only=self._is_read_only))
            return
        paths: list[str] = []
        for lower in self._lowers:
            fd = self._open(lower.path, "root", f"open the layer {lower.path}")
            paths.append(self._place(fd).path)
            if not self._descriptors.has_room():
                raise UnsupportedError(f"bubblewrap: {len(self._lowers)} layers are too many")
            self._layers[paths[-1]] = ["--bind-fd", self._descriptors.take(fd), _HERE]
        self._options += bwrap_overlay.options(paths, fd)
        self._view = View(paths[-1], paths[::-1])
        self.wanted.append(Wanted("/", type="overlay", read_only=self._is_read_only))

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
        if fd >= 0 and self._tool.binds_descriptors and self._descriptors.has_room():
            by_descriptor = ["--bind-fd", self._descriptors.take(fd)]
            if self._tool.is_staged:
                self._sources[path] = [*by_descriptor, _HERE]
            else:
                option_args = by_descriptor
        self._options += [*option_args, target]
        self.wanted.append(Wanted(target, source, read_only=option == "--ro-bind"))

    def _add_hole(self, path: str) -> None:
        with doing(path, "target", f"writable path {path}: target"):
            try:
                fd = native.open_in_root(self._root_fd, path, os.O_PATH | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                if self._box._may_lack_paths:
                    return
                raise
        self._undo.callback(os.close, fd)
        source = self._place(fd)
        root = self._view.over["/"] or "/"
        if source.path == root or not is_below(source.path, root):
            raise self._error(path, "target", errno.EBUSY, f"writable path {path}: target")
        self._bind("--bind", source, source.path[len(root.rstrip("/")) :], fd)

    def _seal(self) -> None:
        """Makes the kernel's own file systems in the root read-only, as _runs/mounts.py does."""
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
        asked = "/proc" in hidden(self._box.extra_mounts)
        return self._box.processes == "isolated" and not asked and self._view.has_directory("/proc")

    def _has_own_dev(self) -> bool:
        return self._view.gets_own("/dev", self._box)

    def _has_own_tmp(self) -> bool:
        return self._box.tmp == "private" and self._view.gets_own("/tmp", self._box)

    def _add_proc(self, target: str) -> None:
        point = self._target(target, True, "proc on /proc")
        self._options += ["--proc", point]
        is_new = self._box.processes == "isolated"
        self.wanted.append(Wanted(point, type="proc", is_new=is_new))
        self._view.put(point, None)
        for name in _COVERED if self._covers else ():
            if os.path.exists(f"/proc/{name}"):
                self._options += ["--ro-bind", f"/proc/{name}", f"{point}/{name}"]

    def _add_mount(self, mount: Mount, name: str) -> None:
        what = f"{name}: {mounts.words_of(mount)}"
        if mount.type in mounts.ENTRIES:
            with doing(mount.target, "target", f"{what}: target", self._box):
                self._options += self._made.options(mount, what)
            return
        if mount.type == "proc":
            self._add_proc(mount.target)
            return
        if mount.source is not None:
            fd = self._open(mount.source, "source", f"{what}: source")
            source = self._place(fd)
            point = self._target(mount.target, os.path.isdir(source.path), what)
            is_sealed = self._covers and mounts.is_of_the_kernel(source.path)
            option = "--ro-bind" if mount.read_only or is_sealed else "--bind"
            self._bind(option, source, point)
            self._view.put(point, source.path)
            if self._covers and mount.recursive and not is_sealed:
                self._seal_each(mounts.seal_paths(source.path, point, ()))
            return
        point = self._target(mount.target, True, what)
        if mount.type == "tmpfs":
            size = ["--size", str(mount.size)] if mount.size else []
            self._options += ["--perms", f"{mount.mode:o}", *size, "--tmpfs", point]
        else:
            self._unnamed[_DEV] = _minimal_dev(_HERE)
            is_staged = self._tool.is_staged
            self._options += ["--dev-bind", _DEV, point] if is_staged else _minimal_dev(point)
        self.wanted.append(Wanted(point, type=mount.type))
        self._view.put(point, None)

    def _target(self, path: str, is_directory: bool, what: str) -> str:
        """The mount point, without symbolic links; it is made for the run if it is missing."""
        with doing(path, "target", f"{what}: make the mount point", self._box):
            point = self._view.resolve(path)
            if point == "/":
                raise OSError(errno.EBUSY, "the root itself")
            at = self._view.mount_of(point)
            host = self._view.host(point)
            if at == "/" and self._box._overlay is not None:
                self._options += bwrap_overlay.missing_parents(self._view, point)
            elif at == "/" and self._stubs is not None:
                self._stubs.hold(path, is_directory)
            elif host is not None:
                os.stat(host)  # ENOENT here: bwrap would create it in the source, and leave it
        return point

    def _error(self, path: str, step: str, number: int, what: str) -> errors.SetupError:
        return errors.setup_error(number, path, step, what, explain.hint(step, 0, number))


def _shared(sources: dict[str, list[str]]) -> dict[str, list[str]]:
    """Puts the directory in the place of its files where many of them are sources: each of them on
    the stage takes six of the arguments that bwrap counts.
    """
    above: dict[str, list[str]] = {}
    for path in sources:
        above.setdefault(os.path.dirname(path), []).append(path)
    shared = dict(sources)
    for directory, paths in above.items():
        if len(paths) >= _MANY and directory != "/":
            for path in paths:
                del shared[path]
            shared[directory] = ["--bind", directory, _HERE]
    return shared


def _minimal_dev(target: str) -> list[str]:
    """The options for Mount.dev(): bwrap's own /dev, and a shm of the kernel's default size."""
    return ["--dev", target, "--perms", "1777", "--tmpfs", f"{target}/shm"]
