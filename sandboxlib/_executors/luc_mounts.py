# SPDX-License-Identifier: Apache-2.0
"""The mounts of linux-user-chroot: what to tell a program that binds one directory at a time.

It follows symbolic links out of the root and makes no mount point; a bind has the flags of the
mount that its source lies on. So every path is looked up here, inside the root, beforehand.
"""

from __future__ import annotations

import contextlib
import errno
import os

from .._host import machine
from .._runs.mount_points import Stubs
from .._spec.mount import Mount
from .._spec.spec import Spec
from ..errors import UnsupportedError
from .view import View, _below, _mounts_below, _parts, doing

# ---- who can change them ---------------------------------------------------------------------


def _changeable(root: str, inside: str) -> str:
    """A directory on the way to a path in the root in which commands of other runs could put
    something else, a symbolic link say; "" if there is none.

    Commands have the caller's uid. Which other runs there are, nobody knows.
    """
    directory = root
    for name in inside.strip("/").split("/"):
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
    """What of a Sandbox the program would look up by names that commands of other runs can change,
    and that could lead it out of the root.
    """
    found: list[str] = []
    with contextlib.suppress(OSError):
        root = machine.real_path(box.root)
        view = View(root)
        below = _mounts_below(root)
        wanted = [(f"writable path {path}", path) for path in _paths(box.filesystem_writable_paths)]
        if box.filesystem_writable_paths != "all" or takes_stage(box):
            start = len(root.rstrip("/"))
            wanted += [(f"the mount {point} below the root", point[start:]) for point in below]
        for what, path in wanted:
            found += _doubt(what, _changeable(root, view.resolve(path)))
        for mount in (*_own_tmp(box, view), *box.extra_mounts):
            inside = view.resolve(mount.target)
            at = view.mount_of(inside)
            base = view.over[at]
            if base is not None and (at != "/" or (root == "/" and mount.source)):
                what = f"mount on {mount.target}"
                found += _doubt(what, _changeable(base, inside[len(at.rstrip("/")) :]))
            view.put(inside, mount.source)
    return found


def _doubt(what: str, directory: str) -> list[str]:
    if not directory:
        return []
    return [
        f"{what}: commands can rename what is in {directory}, and linux-user-chroot would follow a "
        "link there out of the root; take another executor, or a root in which they cannot"
    ]


def takes_stage(box: Spec) -> bool:
    """Whether sources, and the root, have to be put where no command finds them.

    Otherwise a target that became a link would lead one of the mounts over what is looked up next.
    """
    sources = [mount for mount in box.extra_mounts if mount.source]
    with contextlib.suppress(OSError):
        root = machine.real_path(box.root)
        view = View(root)
        return root != "/" and any(_changeable(root, view.resolve(m.target)) for m in sources)
    return False


# ---- the mounts ------------------------------------------------------------------------------


class Recipe:
    """The mount options of one run, in the order in which the program does them:

    aside    what will be covered and is needed later is bound to a directory of ours
    covers   the root and the mounts below it read-only, the writable paths back from aside
    mounts   /proc, and what was asked for

    A bind has the flags of the mount that its source lies on, and none of the mounts below it: from
    a root that is read-only already nothing writable can be bound.
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
        with doing(box.root, "root", f"open the root {box.root}"):
            self.root = machine.real_path(box.root)
            os.stat(os.path.join(self.root, "."))
        self.place = self.root  # what the program gets as the root
        self.view = View(self.root)
        self.writable = box.filesystem_writable_paths
        self.aside: list[list[str]] = []
        self.covers: list[list[str]] = []
        self.mounts: list[list[str]] = []
        self.covered: list[str] = []  # places that are no longer what they were
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
        """Each with its values."""
        return [*self.aside, *self.covers, *self.mounts]

    def _stage(self) -> None:
        """The root goes to a directory of ours first, and what is mounted below it as well."""
        below = _mounts_below(self.root)
        self.place = self._new_directory()
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

        for place in (os.environ.get("TMPDIR"), "/tmp", "/var/tmp", "/dev/shm"):
            if place and os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
                real = os.path.realpath(place)
                if not any(_below(real, other) for other in self._to_be_covered()):
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
            paths += [*_mounts_below("/"), *_paths(self.writable)]
        return [*paths, *map(os.path.realpath, paths)]

    def _check_scratch(self) -> None:
        if not self.scratch or self.root != "/":
            return
        if any(_below(self.scratch, place) for place in self.covered):  # a link led a mount there
            raise UnsupportedError(f"a mount of the sandbox covers {self.scratch}; set TMPDIR")
        if self.writable != "all":  # what is aside is writable, and is seen there as well
            self.mounts.append(["--mount-readonly", self.scratch])

    def _put_aside(self, path: str) -> str:
        _check_directory(path, "; a mount over its directory hides it (Mount.dev())")
        place = self._new_directory()
        # The program appends it to the root, from where the way is up first.
        up = "" if self.root == "/" else "/.." * self.place.count("/")
        self.aside.append(["--mount-bind", path, up + place])
        return place

    # -- the root read-only

    def _protect(self) -> None:
        """With every mount below it, but for the writable paths. Comes after the mounts are known:
        what gets a mount on it is not seen, and needs nothing.
        """
        seen = [self._hole(path) for path in _paths(self.writable)]
        holes = {hole for hole in seen if not self._is_covered(hole)}
        start = len(self.root.rstrip("/"))
        points = {point[start:] for point in _mounts_below(self.root)}
        points = {point for point in points if not self._is_covered(point)}
        hidden_by = [] if self.root == "/" else ["/"]  # "/." below "/" changes the mount in place
        self.covers.append(["--mount-readonly", "/."])
        for place in sorted(holes | points, key=_parts):
            around = [hole for hole in holes if _below(place, hole)]
            if place not in points and around != [place]:
                continue  # a part of another hole
            back = place not in points or any(_below(place, other) for other in hidden_by)
            if back:
                source = self._put_aside(os.path.join(self.root, place[1:]))
                self.covers.append(["--mount-bind", source, place])
            if not around:
                self.covers.append(["--mount-readonly", place])
            if back or not around:
                hidden_by.append(place)
        self.covered += hidden_by

    def _is_covered(self, place: str) -> bool:
        return any(_below(place, other) for other in self.covered)

    def _hole(self, path: str) -> str:
        with doing(path, "target", f"writable path {path}: target"):
            inside = View(self.root).resolve(path)
            os.stat(os.path.join(self.root, inside[1:]))
        return inside

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
        """Where the root has such a directory, and nothing else was asked for."""
        if any(mount.target == path for mount in self.box.extra_mounts):
            return
        with contextlib.suppress(OSError):
            inside = self.view.resolve(path)
            if os.path.isdir(self.view.host(inside) or ""):
                self._put(option, inside)

    def _add_mount(self, mount: Mount, what: str) -> None:
        source = mount.source
        if source is not None:
            with doing(source, "source", f"{what}: source"):
                source = machine.real_path(source)
                os.stat(source)
            _check_directory(source)
        with doing(mount.target, "target", f"{what}: target"):
            target = self._target(mount.target, what)
        if source is not None:
            self._bind(source, target, mount)
        elif mount.type == "tmpfs":
            place = self._new_directory()
            os.chmod(place, mount.mode)
            self._bind(place, target, mount)
        else:
            self._put("--mount-proc" if mount.type == "proc" else "--mount-devapi", target)

    def _bind(self, source: str, target: str, mount: Mount) -> None:
        """One bind, and one more for each mount below the source."""
        start = len(source.rstrip("/"))
        for path in (source, *(_mounts_below(source) if mount.recursive else ())):
            _check_directory(path, "; recursive=False leaves it out")
            at = target if path == source else target + path[start:]
            changed = self.writable != "all" or self.mounts
            is_ours = bool(self.scratch) and _below(path, self.scratch)
            aside = not is_ours if self.staged else changed and _below(path, self.root)
            whence = self._put_aside(path) if aside else path
            self.mounts.append(["--mount-bind", whence, at])
            if mount.read_only:
                self.mounts.append(["--mount-readonly", at])
        self.covered.append(target)
        self.view.put(target, source)

    def _put(self, option: str, target: str) -> None:
        self.mounts.append([option, target])
        self.covered.append(target)
        self.view.put(target, None)

    def _target(self, path: str, what: str) -> str:
        """Where a mount goes, without symbolic links; made for the run where it is missing."""
        inside = self.view.resolve(path)
        if inside == "/":
            raise OSError(errno.EBUSY, "the root itself")
        host = self.view.host(inside)
        if host is None:
            raise UnsupportedError(f"{what}: the target lies in a proc or dev of the sandbox")
        if self.view.mount_of(inside) == "/":
            self.stubs.hold(inside, True)
        elif self.scratch and _below(host, self.scratch):
            os.makedirs(host, exist_ok=True)
        else:
            os.stat(host)
        return inside


def _own_tmp(box: Spec, view: View) -> tuple[Mount, ...]:
    """The private /tmp, if the Sandbox has one and the root a place for it."""
    targets = [mount.target for mount in box.extra_mounts]
    if box.tmp != "private" or "/tmp" in targets:
        return ()
    is_there = os.path.isdir(view.find("/tmp") or "")
    return (Mount.tmpfs("/tmp"),) if is_there or any(_below(t, "/tmp") for t in targets) else ()


def _paths(writable: str | tuple[str, ...]) -> tuple[str, ...]:
    return () if isinstance(writable, str) else writable


def _check_directory(path: str, remedy: str = "") -> None:
    if not os.path.isdir(path):
        raise UnsupportedError(f"linux-user-chroot mounts directories, not files: {path}{remedy}")


def _remove_tree(path: str) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)
    for directory, names, _ in os.walk(path):  # a command may have made some that nobody enters
        for name in names:
            inner = os.path.join(directory, name)
            if not os.path.islink(inner):
                with contextlib.suppress(OSError):
                    os.chmod(inner, 0o700)
    shutil.rmtree(path, ignore_errors=True)
