# SPDX-License-Identifier: Apache-2.0
"""The mounts of linux-user-chroot: the options for a program that binds one directory at a time.

The program follows symbolic links out of the root, and makes no mount points; a bind mount gets the
flags of the mount of its source. So this module looks up every path beforehand, inside the root.
"""

from __future__ import annotations

import contextlib
import errno
import os

from .._host import machine
from .._host.machine import is_below
from .._runs.mount_points import Stubs
from .._runs.mounts import holes_of
from .._spec.mount import Mount
from .._spec.spec import Spec
from ..errors import UnsupportedError
from .view import View, _mounts_below, _parts, doing

# ---- paths that commands can change ----------------------------------------------------------


def _changeable(root: str, path: str) -> str:
    """A directory on the way to a path in the root in which commands of other runs could replace a
    name, by a symbolic link for example; "" if there is none.

    Commands have the caller's uid, and there may always be other runs.
    """
    directory = root
    for name in path.strip("/").split("/"):
        if _can_change(directory):
            return directory
        directory = os.path.join(directory, name)
    return ""


def _can_change(directory: str) -> bool:
    try:
        status = os.stat(directory)
        if os.statvfs(directory).f_flag & os.ST_RDONLY:
            return False
    except OSError:
        return False
    return bool(
        status.st_uid == os.geteuid()
        or status.st_mode & 0o022
        or os.access(directory, os.W_OK, effective_ids=True)
    )


def doubts(box: Spec) -> list[str]:
    """A refusal for each path of a Sandbox that commands of other runs could change so that it
    leads the program out of the root.
    """
    refused: list[str] = []
    with contextlib.suppress(OSError):
        root = machine.real_path(box._directory)
        view = View(root)
        below = _mounts_below(root)
        wanted = [(f"writable path {path}", path) for path in holes_of(box)]
        if box.filesystem_writable_paths != "all" or takes_stage(box):
            start = len(root.rstrip("/"))
            wanted += [(f"the mount {point} below the root", point[start:]) for point in below]
        for what, path in wanted:
            refused += _doubt(what, _changeable(root, view.resolve(path)))
        for mount in (*_own_tmp(box, view), *box.extra_mounts):
            target = view.resolve(mount.target)
            at = view.mount_of(target)
            base = view.over[at]
            if base is not None and (at != "/" or (root == "/" and mount.source)):
                what = f"mount on {mount.target}"
                refused += _doubt(what, _changeable(base, target[len(at.rstrip("/")) :]))
            view.put(target, mount.source)
    return refused


def _doubt(what: str, directory: str) -> list[str]:
    if not directory:
        return []
    return [
        f"{what}: commands can rename what is in {directory}, and linux-user-chroot would follow a "
        "link there out of the root; take another executor, or a root in which they cannot"
    ]


def takes_stage(box: Spec) -> bool:
    """Whether the sources and the root have to be bound to directories that no command can find.

    Otherwise a target that became a link could lead one mount over the next path to look up.
    """
    sources = [mount for mount in box.extra_mounts if mount.source]
    with contextlib.suppress(OSError):
        root = machine.real_path(box._directory)
        view = View(root)
        return root != "/" and any(_changeable(root, view.resolve(m.target)) for m in sources)
    return False


# ---- the mounts ------------------------------------------------------------------------------


class Recipe:
    """The mount options of one run, in the order in which the program does them:

    aside    binds each path that a later mount will cover, and that is still needed, to a directory
             of ours
    covers   makes the root and the mounts below it read-only, and binds the writable paths back
             from aside
    mounts   /proc, and the mounts of the Sandbox

    A bind mount gets the flags of the mount of its source, without the mounts below: a source in a
    root that is read-only already cannot become writable. So aside comes first.
    """

    def __init__(
        self,
        box: Spec,
        undo: contextlib.ExitStack,
        deadline: float | None = None,
        staged: bool = False,
    ) -> None:
        """staged: see takes_stage."""
        self.box, self.undo, self.staged = box, undo, staged
        with doing(box._directory, "root", f"open the root {box._directory}"):
            self.root = machine.real_path(box._directory)
            os.stat(os.path.join(self.root, "."))
        self.program_root = self.root  # the path that the program gets as its root
        self.view = View(self.root)
        self.writable = box.filesystem_writable_paths
        self.aside: list[list[str]] = []
        self.covers: list[list[str]] = []
        self.mounts: list[list[str]] = []
        self.covered: list[str] = []  # paths on which the options mount
        self.scratch = ""
        self.stubs = Stubs(self.root, deadline)
        undo.callback(self.stubs.release)
        if staged:
            self._stage()
        if box.mounts == "isolated":
            self._add_mounts()
        if self.writable != "all":
            self._protect()
        self._check_scratch()

    def options(self) -> list[list[str]]:
        """The options, each with its values."""
        return [*self.aside, *self.covers, *self.mounts]

    def _stage(self) -> None:
        """Binds the root, and each mount below it, to directories of ours first."""
        below = _mounts_below(self.root)
        self.program_root = self._new_directory()
        self.aside.append(["--mount-bind", self.root, "/."])
        start = len(self.root)
        for point in below:
            if self.writable == "all":
                self.covers.append(["--mount-bind", self._put_aside(point), point[start:]])

    # -- directories of ours

    def _new_directory(self) -> str:
        if not self.scratch:
            self.scratch = self._make_scratch()
        path = f"{self.scratch}/{len(os.listdir(self.scratch))}"
        os.mkdir(path)
        return path

    def _make_scratch(self) -> str:
        """A new directory that no mount of the run will cover."""
        import tempfile

        for parent in (os.environ.get("TMPDIR"), "/tmp", "/var/tmp", "/dev/shm"):
            if parent and os.path.isdir(parent) and os.access(parent, os.W_OK | os.X_OK):
                real = os.path.realpath(parent)
                if not any(is_below(real, other) for other in self._to_be_covered()):
                    made = tempfile.mkdtemp(prefix="sandboxlib.", dir=real)
                    self.undo.callback(_remove_tree, made)
                    return made
        raise UnsupportedError(
            "linux-user-chroot takes a writable directory that the sandbox does not cover; "
            "set TMPDIR to one that is outside the root, its mounts and its writable paths"
        )

    def _to_be_covered(self) -> list[str]:
        if self.root != "/":
            return [self.root]
        own = _own_tmp(self.box, self.view)
        paths = ["/proc", *(mount.target for mount in (*own, *self.box.extra_mounts))]
        if self.writable != "all":
            paths += [*_mounts_below("/"), *holes_of(self.box)]
        return [*paths, *map(os.path.realpath, paths)]

    def _check_scratch(self) -> None:
        if not self.scratch or self.root != "/":
            return
        if any(is_below(self.scratch, path) for path in self.covered):  # by a symbolic link
            raise UnsupportedError(f"a mount of the sandbox covers {self.scratch}; set TMPDIR")
        if self.writable != "all":  # the command sees the directories of aside here, writable
            self.mounts.append(["--mount-readonly", self.scratch])

    def _put_aside(self, path: str) -> str:
        _check_directory(path, "; a mount over its directory hides it (Mount.dev())")
        directory = self._new_directory()
        # The program appends the target to its root, so the target leads up to / first.
        up = "" if self.root == "/" else "/.." * self.program_root.count("/")
        self.aside.append(["--mount-bind", path, up + directory])
        return directory

    # -- the root read-only

    def _protect(self) -> None:
        """Makes the root and every mount below it read-only, except the writable paths. It comes
        after the mounts: a path below one of them is hidden, and needs no option.
        """
        paths = [self._hole(path) for path in holes_of(self.box)]
        holes = {hole for hole in paths if hole and not self._is_covered(hole)}
        start = len(self.root.rstrip("/"))
        points = {point[start:] for point in _mounts_below(self.root)}
        points = {point for point in points if not self._is_covered(point)}
        hidden_by = [] if self.root == "/" else ["/"]  # "/." below "/" changes the mount in place
        self.covers.append(["--mount-readonly", "/."])
        for path in sorted(holes | points, key=_parts):
            around = [hole for hole in holes if is_below(path, hole)]
            if path not in points and around != [path]:
                continue  # it lies in another hole
            back = path not in points or any(is_below(path, other) for other in hidden_by)
            if back:
                source = self._put_aside(os.path.join(self.root, path[1:]))
                self.covers.append(["--mount-bind", source, path])
            if not around:
                self.covers.append(["--mount-readonly", path])
            if back or not around:
                hidden_by.append(path)
        self.covered += hidden_by

    def _is_covered(self, path: str) -> bool:
        return any(is_below(path, other) for other in self.covered)

    def _hole(self, path: str) -> str:
        """A writable path without symbolic links; "" if the root lacks it, and may."""
        with doing(path, "target", f"writable path {path}: target"):
            hole = View(self.root).resolve(path)
            try:
                os.stat(os.path.join(self.root, hole[1:]))
            except (FileNotFoundError, NotADirectoryError):
                if not self.box._may_lack_paths:
                    raise
                return ""
        return hole

    # -- mounts

    def _add_mounts(self) -> None:
        if self.box.processes == "isolated":
            self._add_own("--mount-proc", "/proc")
        if self.box.devices == "minimal":
            self._add_own("--mount-devapi", "/dev")
        for mount in _own_tmp(self.box, self.view):
            self._add_mount(mount, "the private /tmp")
        for index, mount in enumerate(self.box.extra_mounts):
            self._add_mount(mount, f"mount {index}: {mount.source or mount.type} on {mount.target}")

    def _add_own(self, option: str, path: str) -> None:
        """Adds the option if the root has such a directory, and no extra mount goes there."""
        if any(mount.target == path for mount in self.box.extra_mounts):
            return
        with contextlib.suppress(OSError):
            target = self.view.resolve(path)
            if os.path.isdir(self.view.host(target) or ""):
                self._put(option, target)

    def _add_mount(self, mount: Mount, what: str) -> None:
        source = mount.source
        if source is not None:
            with doing(source, "source", f"{what}: source"):
                source = machine.real_path(source)
                os.stat(source)
            _check_directory(source)
        with doing(mount.target, "target", f"{what}: target", self.box):
            target = self._target(mount.target, what)
        if source is not None:
            self._bind(source, target, mount)
        elif mount.type == "tmpfs":
            directory = self._new_directory()
            os.chmod(directory, mount.mode)
            self._bind(directory, target, mount)
        else:
            self._put("--mount-proc" if mount.type == "proc" else "--mount-devapi", target)

    def _bind(self, source: str, target: str, mount: Mount) -> None:
        """Adds a bind mount, and one more for each mount below the source."""
        start = len(source.rstrip("/"))
        for path in (source, *(_mounts_below(source) if mount.recursive else ())):
            _check_directory(path, "; recursive=False leaves it out")
            at = target if path == source else target + path[start:]
            changed = self.writable != "all" or self.mounts
            is_ours = bool(self.scratch) and is_below(path, self.scratch)
            aside = not is_ours if self.staged else changed and is_below(path, self.root)
            bound_from = self._put_aside(path) if aside else path
            self.mounts.append(["--mount-bind", bound_from, at])
            if mount.read_only:
                self.mounts.append(["--mount-readonly", at])
        self.covered.append(target)
        self.view.put(target, source)

    def _put(self, option: str, target: str) -> None:
        self.mounts.append([option, target])
        self.covered.append(target)
        self.view.put(target, None)

    def _target(self, path: str, what: str) -> str:
        """The mount point, without symbolic links; it is made for the run if it is missing."""
        target = self.view.resolve(path)
        if target == "/":
            raise OSError(errno.EBUSY, "the root itself")
        host = self.view.host(target)
        if host is None:
            raise UnsupportedError(f"{what}: the target lies in a proc or dev of the sandbox")
        if self.view.mount_of(target) == "/":
            self.stubs.hold(target, True)
        elif self.scratch and is_below(host, self.scratch):
            os.makedirs(host, exist_ok=True)
        else:
            os.stat(host)
        return target


def _own_tmp(box: Spec, view: View) -> tuple[Mount, ...]:
    """The private /tmp, if the Sandbox has one, and the root has a /tmp or can get it."""
    has_one = box.tmp == "private" and view.gets_own("/tmp", box)
    return (Mount.tmpfs("/tmp"),) if has_one else ()


def _check_directory(path: str, remedy: str = "") -> None:
    if not os.path.isdir(path):
        raise UnsupportedError(f"linux-user-chroot mounts directories, not files: {path}{remedy}")


def _remove_tree(path: str) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)
    for directory, names, _ in os.walk(
        path
    ):  # a command may have made directories without permission to enter
        for name in names:
            inner = os.path.join(directory, name)
            if not os.path.islink(inner):
                with contextlib.suppress(OSError):
                    os.chmod(inner, 0o700)
    shutil.rmtree(path, ignore_errors=True)
