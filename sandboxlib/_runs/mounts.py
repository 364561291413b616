# SPDX-License-Identifier: Apache-2.0
"""The mounts of a Sandbox for the C core, with those that the sandbox adds itself."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .. import errors
from .._core import native
from .._host import machine
from .._spec.inputs import File
from .._spec.mount import Mount, check_content, hidden
from .._spec.spec import Spec
from .mount_points import Stubs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

lib = native.lib
_KINDS = {
    "bind": lib.SBX_BIND,
    "tmpfs": lib.SBX_TMPFS,
    "proc": lib.SBX_PROC,
    "dev": lib.SBX_DEV,
    "directory": lib.SBX_DIRECTORY,
    "symlink": lib.SBX_SYMLINK,
    "file": lib.SBX_FILE,
}
#: Mounts that the core makes in the root, or in a mirror of a directory of it.
ENTRIES = ("directory", "symlink", "file")


class PlannedMount:
    """One entry of the C array of mounts: its values, and its title for messages."""

    stays = False  # True: no run can change it, so a slot may keep it
    #: Targets of earlier entries above this target: if the root lacks one, the mount point lies in
    #: what the core makes there, and needs no stub.
    made_above: tuple[str, ...] = ()
    is_on_entry = False  # True: it is an entry, or an entry makes its mount point, in the root

    def __init__(self, text: str, kind: int, flags: int, target: str, in_root: bool) -> None:
        self.title = text
        self.target = target
        self.source: str | None = None
        self.in_root = in_root  # the target lies in the root itself, so a stub can be made for it
        self.values: dict[str, Any] = {"kind": kind, "flags": flags, "target": target}
        if kind in (lib.SBX_TMPFS, lib.SBX_DEV):
            self.values["inodes"] = inodes_of(None)

    @property
    def is_optional(self) -> bool:
        """Whether it is left out if the root has no such directory."""
        return bool(self.values["flags"] & lib.SBX_OPTIONAL)

    @property
    def is_over_the_root(self) -> bool:
        """Whether it shows other files than the root has there."""
        return self.values["kind"] not in (lib.SBX_HOLE, lib.SBX_SEAL) and not self.is_made

    @property
    def is_made(self) -> bool:
        """Whether it is a directory or a symbolic link, which mounts nothing."""
        return self.values["kind"] in (lib.SBX_DIRECTORY, lib.SBX_SYMLINK)

    @property
    def is_file(self) -> bool:
        """Whether it is a file with a content of the caller's."""
        return bool(self.values["kind"] == lib.SBX_FILE)

    @property
    def is_entry(self) -> bool:
        """Whether the core makes it in the root, or in a mirror of a directory of it."""
        return self.is_made or self.is_file

    @property
    def point(self) -> str:
        """What it leaves in the upper of an overlay, as class Upper has it."""
        is_link = self.values["kind"] == lib.SBX_SYMLINK
        return f"{self.target}//{self.values['source']}" if is_link else self.target

    def needs_stub(self, stubs: Stubs) -> bool:
        """Whether the root lacks the mount point, and nothing but a stub gives it one."""
        made = any(stubs.is_missing(path) for path in self.made_above)
        return self.in_root and not made and stubs.is_missing(self.target)

    def needs_lender(self, in_user_namespace: bool) -> bool:
        """Whether it is a dev that lies in a new file system of the run."""
        is_dev = self.values["kind"] == lib.SBX_DEV
        return in_user_namespace and is_dev and not self.in_root and not self.is_optional

    def is_directory(self) -> bool:
        """Whether the mount point has to be a directory."""
        if self.is_file:
            return False
        return self.source is None or bool(lib.sbx_is_directory(os.fsencode(self.source)))


def _all_mounts(box: Spec) -> list[PlannedMount]:
    """All mounts, in order: holes in a read-only root, seals, the run's own /proc, /dev and /tmp,
    and the extra mounts.
    """
    planned: list[PlannedMount] = []
    cover = lib.SBX_COVER if box.policy.capabilities != "all" else 0
    flags = lib.SBX_RECURSIVE | (lib.SBX_NO_DEVICES if _hides_devices(box) else 0)
    flags |= lib.SBX_MAY_LACK if box._may_lack_paths else 0
    for path in holes_of(box):
        text = f"writable path {path}"
        planned.append(PlannedMount(text, lib.SBX_HOLE, flags | cover, path, False))
    isolated = box.processes == box.mounts == "isolated"
    targets = hidden(box.extra_mounts)
    with_proc = "/proc" in targets
    # A directory for a mount of our own comes before that.
    asked = sorted(enumerate(box.extra_mounts), key=lambda pair: not is_for_ours(pair[1]))
    for index, mount in asked:
        if is_for_ours(mount):
            planned.append(_planned(f"mount {index}", mount, True, 0))
    if cover and box.mounts == "isolated" and box._overlay is None:
        planned += _seals(box._directory, "/", () if isolated or with_proc else ("/proc",))
    if isolated and not with_proc:
        flags = lib.SBX_OPTIONAL | (0 if box.policy.nesting else cover)
        planned.append(PlannedMount("proc on /proc", lib.SBX_PROC, flags, "/proc", False))
    if _hides_devices(box) and "/dev" not in targets:
        planned += _minimal_dev(box)
    if box.tmp == "private" and "/tmp" not in targets:
        planned.append(_private_tmp(box))
    own = [("deterministic", mount) for mount in _accounts(box)]
    if (resolver := resolver_of(box)) is not None:
        own.append(("resolv_conf", resolver))
    own += [(f"mount {i}", mount) for i, mount in asked if not is_for_ours(mount)]
    for name, mount in own:
        # A user namespace is given a proc of its own only where it can see one that is whole.
        covers = 0 if box.policy.nesting and mount.type == "proc" else cover
        lies_in_one = _lies_in_one(mount.target, planned)
        is_on_entry = mount.type in ENTRIES or _is_made_by_one(mount.target, planned)
        planned.append(_planned(name, mount, lies_in_one or is_on_entry, covers))
        planned[-1].is_on_entry = is_on_entry and not lies_in_one
        planned[-1].made_above = _made_above(mount.target, planned[:-1])
        if cover and mount.source and mount.recursive:
            planned += _seals(mount.source, mount.target, ())
    if box._overlay is not None:  # mount points are made in the run's own upper
        for each in planned:
            each.in_root = each.is_on_entry = False
    return planned


def is_for_ours(mount: Mount) -> bool:
    """Whether it is a directory for the sandbox's own /proc, /dev or /tmp."""
    return mount.type == "directory" and mount.target in ("/proc", "/dev", "/tmp")


def holes_of(box: Spec) -> list[str]:
    """The writable paths that need a mount: an extra mount on a path, or above it, hides what the
    root has there, and the root may lack it.
    """
    paths = box.filesystem_writable_paths
    targets = hidden(box.extra_mounts)
    return [
        path
        for path in (paths if isinstance(paths, tuple) else ())
        if not any(machine.is_below(path, target) for target in targets)
    ]


def _is_made_by_one(target: str, earlier: Sequence[PlannedMount]) -> bool:
    """Whether the core makes a target for an earlier entry, at the target or below it."""
    return any(machine.is_below(other.target, target) for other in earlier if other.is_entry)


def _made_above(target: str, earlier: Sequence[PlannedMount]) -> tuple[str, ...]:
    """The targets of earlier directories and links that lie above a target."""
    made = [mount.target for mount in earlier if mount.is_made]
    return tuple(path for path in made if machine.is_below(target, path))


def _lies_in_one(target: str, earlier: Sequence[PlannedMount]) -> bool:
    """Whether a target lies in an earlier mount of the run, and so needs no stub in the root."""
    return any(
        machine.is_below(target, mount.target) and not mount.is_optional
        for mount in earlier
        if mount.is_over_the_root
    )


def _hides_devices(box: Spec) -> bool:
    """Whether the sandbox lets no device node of the root work."""
    return box.mounts == "isolated" and box.devices != "root"


def _minimal_dev(box: Spec) -> list[PlannedMount]:
    """The mount on /dev, and those of the devices that the Sandbox lists.

    It is read-only, so that a slot can keep it, unless a writable path lies in it. If other mounts
    go into it, a missing /dev is made.
    """
    writable = box.filesystem_writable_paths
    paths = writable if isinstance(writable, tuple) else ()
    below = [m.target for m in box.extra_mounts if m.target.startswith("/dev/")]
    devices = box.devices if isinstance(box.devices, tuple) else ()
    flags = 0 if below or devices else lib.SBX_OPTIONAL
    if not any(f"{path}/".startswith("/dev/") for path in paths):
        flags |= lib.SBX_READ_ONLY
    dev = PlannedMount("dev on /dev", lib.SBX_DEV, flags, "/dev", not flags & lib.SBX_OPTIONAL)
    # Each run makes the mount points of its own mounts, so a /dev that needs some cannot stay.
    dev.stays = bool(flags & lib.SBX_READ_ONLY) and set(below) <= {"/dev/shm", "/dev/pts"}
    planned = [dev]
    for path in devices:
        flags = lib.SBX_READ_ONLY | lib.SBX_DEVICE
        planned.append(PlannedMount(f"device {path}", lib.SBX_BIND, flags, path, False))
        planned[-1].source = planned[-1].values["source"] = path
    return planned


def _private_tmp(box: Spec) -> PlannedMount:
    """The private mount on /tmp. If other mounts go into it, a missing /tmp is made."""
    is_needed = any(mount.target.startswith("/tmp/") for mount in box.extra_mounts)
    flags = 0 if is_needed else lib.SBX_OPTIONAL
    tmp = PlannedMount("the private /tmp", lib.SBX_TMPFS, flags, "/tmp", is_needed)
    tmp.values["mode"] = "1777"
    return tmp


def resolver_of(box: Spec) -> Mount | None:
    """The mount of the caller's resolv.conf. Links are resolved: the root may lack a target."""
    if not box.resolv_conf:
        return None
    try:
        path = machine.real_path(_RESOLVER)
    except OSError:  # it does not exist: the run reports that
        path = _RESOLVER
    return Mount.bind(path, _RESOLVER, read_only=True)


_RESOLVER = "/etc/resolv.conf"


# The same file systems as is_of_the_kernel() in csrc/child/seals.c, by their names in mountinfo.
_OF_THE_KERNEL = frozenset(
    "sysfs cgroup cgroup2 debugfs tracefs securityfs configfs efivarfs pstore bpf selinuxfs "
    "smackfs fusectl binfmt_misc resctrl proc".split()
)


def _seals(source: str, target: str, also: tuple[str, ...]) -> list[PlannedMount]:
    """Seals: they make the kernel's file systems below a source read-only, as uid 0 commands the
    kernel by them. also: further paths in the root.
    """
    paths = seal_paths(source, target, also)
    return [PlannedMount(f"seal {p}", lib.SBX_SEAL, lib.SBX_COVER, p, False) for p in paths]


def seal_paths(source: str, target: str, also: tuple[str, ...]) -> list[str]:
    """The paths in the sandbox of the kernel's file systems below a source.

    /sys of a root is always one of them, as it may be mounted later. A mount below another one is
    left out, as a seal is recursive. Nothing is looked up on a file system that may hang.
    """
    types = {mount.point: mount.type for mount in machine.mounts()}  # the last one lies on top
    points = sorted(point for point, kind in types.items() if kind in _OF_THE_KERNEL)
    top = source.rstrip("/")
    if not _is_straight(top):
        paths = _ends(points)
    else:
        paths = []
        for point in points:
            rest = point[len(top) :]
            if point.startswith(f"{top}/") and not any(
                machine.is_below(rest, other) for other in paths
            ):
                paths.append(rest)
    if target == "/":
        paths = [*also, "/sys", *(path for path in paths if path not in ("/proc", "/sys", *also))]
    return [target.rstrip("/") + path for path in paths]


def _is_straight(path: str) -> bool:
    """Whether mountinfo names a directory by this path: it has no symbolic links and no ".."."""
    if not path:
        return True
    if machine.may_hang(path, machine.hanging_mounts()):
        return False
    try:
        return machine.real_path(path) == path
    except OSError:
        return False


def _ends(points: Sequence[str]) -> list[str]:
    """All paths that the mount points may have below a directory that we cannot resolve."""
    parts = [point.split("/")[1:] for point in points]
    return sorted({"/" + "/".join(w[i:]) for w in parts for i in range(len(w)) if w[i:] != [""]})


def is_of_the_kernel(path: str) -> bool:
    """Whether a path of the caller lies in one of the kernel's file systems."""
    around = [m for m in machine.mounts() if machine.is_below(path, m.point)]
    return bool(around) and max(around, key=lambda m: len(m.point)).type in _OF_THE_KERNEL


def _accounts(box: Spec) -> list[Mount]:
    """The mounts on /etc/passwd and /etc/group of a deterministic Sandbox."""
    if not box.deterministic:
        return []
    ours = os.path.join(os.path.dirname(errors.__file__), "_etc")
    names = ("passwd", "group")
    return [Mount.bind(f"{ours}/{name}", f"/etc/{name}", read_only=True) for name in names]


def _planned(name: str, mount: Mount, is_in_mount: bool, cover: int) -> PlannedMount:
    """The entry of a Mount. is_in_mount: its target lies in another mount of the run."""
    flags = cover if mount.type in ("proc", "bind") else 0
    flags |= lib.SBX_RECURSIVE if mount.recursive else 0
    flags |= lib.SBX_READ_ONLY if mount.read_only else 0
    title = f"{name}: {words_of(mount)}"
    planned = PlannedMount(title, _KINDS[mount.type], flags, mount.target, not is_in_mount)
    if mount.source:
        planned.source = planned.values["source"] = mount.source
    if mount.type == "tmpfs":
        planned.values["mode"] = f"{mount.mode:o}"
        planned.values["inodes"] = inodes_of(mount.size)
        if mount.size:
            planned.values["size"] = str(mount.size)
    if mount.type in ENTRIES:
        planned.values |= entry_values(mount)
    return planned


def words_of(mount: Mount) -> str:
    """A mount as messages name it."""
    if mount.type == "symlink":
        return f"symlink {mount.target} to {mount.to}"
    what = f"bind {mount.source}" if mount.source else mount.type
    return f"{what} {mount.target}" if mount.type in ENTRIES else f"{what} on {mount.target}"


def entry_values(mount: Mount) -> dict[str, Any]:
    """What struct sbx_mount has for an entry. The content of a File is read here."""
    if mount.type == "symlink":
        return {"source": mount.to}
    if mount.type == "directory":
        return {"bits": mount.mode}
    content, bits = content_of(mount)
    return {"content": content, "length": len(content), "bits": bits}


def content_of(mount: Mount) -> tuple[bytes, int]:
    """What a file holds, and its permissions."""
    file = mount.content
    if not isinstance(file, File):
        return file or b"", mount.mode
    check_content(file.size)
    bits = mount.mode | (mount.mode & 0o444) >> 2 if file.executable else mount.mode
    return file.read_bytes(), bits


def inodes_of(size: int | None) -> str:
    """How many inodes a tmpfs of that size gets: they take kernel memory beyond its size."""
    if size is None:
        size = (
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        )  # the default of tmpfs(5)
    return str(min(max(size // 4096, 1024), 1 << 20))
