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
import fcntl
import os
import re
import select
import signal
import struct
import termios
import threading
from collections import namedtuple
from collections.abc import Callable, Sequence
from time import monotonic

from . import _native, _plan, errors
from ._host import machine, tools
from ._luc_mounts import View, doing
from ._stubs import Stubs
from .errors import UnsupportedError
from .sandbox import Mount, Sandbox

PROGRAM = "bwrap"
#: bwrap counts the words of the command and of its own options together.
MOST_WORDS = 9000
_LONGEST_TRY = 30.0  # seconds
_NEEDED = "--args --as-pid-1 --json-status-fd --perms --seccomp --setenv --size".split()
#: uid 0 may write these without any capability, and the kernel obeys (proc(5)).
_COVERED = "sys sysrq-trigger irq bus fs scsi acpi asound dynamic_debug latency_stats".split()
_HERE, _ROOT, _DEV = "\0here", "\0root", "\0dev"  # words that stand for others
#: A seccomp program that allows everything: load a word, return SECCOMP_RET_ALLOW.
ALLOW_ALL = struct.pack("=HBBIHBBI", 0x20, 0, 0, 0, 0x06, 0, 0, 0x7FFF0000)


# ---- the program -----------------------------------------------------------------------------


class Tool:
    """A bwrap that was tried. is_staged: it takes a stage (see above)."""

    def __init__(self, path: str, options: frozenset[str], is_staged: bool) -> None:
        self.path = path
        self.binds_descriptors = "--bind-fd" in options
        self.is_staged = is_staged


_known: dict[tuple[object, ...], Tool] = {}


def find_tool(deadline: float | None = None) -> Tool:
    """The bwrap of the caller's PATH. ProgramNotFound, UnsupportedError, SetupError."""
    path = tools.trusted_tool(PROGRAM)
    if path is None:
        raise errors.ProgramNotFound(f"there is no {PROGRAM} in PATH; install bubblewrap")
    found = os.stat(path)
    key = (path, found.st_dev, found.st_ino, found.st_ctime_ns, os.geteuid())
    if key not in _known:
        options = _options(path, deadline)
        missing = [name for name in _NEEDED if name not in options]
        if missing:
            raise UnsupportedError(f"{path} has no {', '.join(missing)}; install bubblewrap 0.8")
        _known[key] = Tool(path, options, _takes_stage(path, deadline))
    return _known[key]


def _options(path: str, deadline: float | None) -> frozenset[str]:
    """The options that `bwrap --help` lists."""
    from subprocess import DEVNULL, TimeoutExpired, run

    argv, wait = [path, "--help"], _time_left(deadline)
    try:
        done = run(
            argv, stdin=DEVNULL, capture_output=True, cwd="/", env={}, timeout=wait, check=False
        )
    except (OSError, TimeoutExpired) as error:
        number = getattr(error, "errno", None) or errno.ETIMEDOUT
        raise errors.setup_error(number, path, "bwrap", f"try {path}") from error
    return frozenset(re.findall(r"--[a-z0-9-]+", os.fsdecode(done.stdout + done.stderr)))


def _time_left(deadline: float | None) -> float:
    left = _LONGEST_TRY if deadline is None else deadline - monotonic()
    return max(0.1, min(_LONGEST_TRY, left))


def _takes_stage(path: str, deadline: float | None) -> bool:
    """Whether `..` in a target leads out of the new root, and so there is a place for a stage.

    Where it does not, bwrap resolves targets inside the new root, links as well: that is tried too.
    UnsupportedError where neither is so, SetupError where bwrap does not work at all.
    """
    points = _points_of(path, ["--tmpfs", "/../sandboxlib"], deadline)
    if "/sandboxlib" not in points:
        return True
    link = ["--dir", "/there", "--symlink", "/there", "/link", "--tmpfs", "/link/in"]
    if "/there/in" in _points_of(path, link, deadline):
        return False
    raise UnsupportedError(f"{path} follows links in targets out of the root; install another")


def _points_of(path: str, options: list[str], deadline: float | None) -> set[str]:
    """Where something is mounted after bwrap obeyed; the root is an empty directory in memory."""
    from subprocess import DEVNULL, Popen, TimeoutExpired

    said = os.memfd_create("stderr", os.MFD_CLOEXEC)
    try:
        with Gate() as gate:
            argv = [path, *gate.options(), *options, "--", "/none"]
            process = Popen(
                argv,
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=said,
                cwd="/",
                env={},
                pass_fds=gate.descriptors(),
                start_new_session=True,
            )
            try:
                gate.started()
                give_up = monotonic() + _time_left(deadline)
                while not (reached := gate.is_reached()) and not gate.is_over():
                    if monotonic() >= give_up:
                        break
                    gate.pause()
                if reached:
                    return {mounted.point for mounted in table(gate.pid() or 0)}
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # what waits at the gate as well
                with contextlib.suppress(TimeoutExpired):  # the kernel may hold it for longer
                    process.wait(5)
        text = os.fsdecode(os.pread(said, 4096, 0)).strip()
    finally:
        os.close(said)
    raise (
        failed(text) if text else errors.setup_error(errno.ETIMEDOUT, path, "bwrap", f"try {path}")
    )


def failed(text: str) -> errors.SetupError:
    """What bwrap said before it gave up, as an error."""
    number = next(
        (n for n, name in errno.errorcode.items() if text.endswith((os.strerror(n), f"({name})"))),
        errno.EIO,
    )
    hint = "; ".join(f"{c}: {r}" for c, r in machine.user_namespace_causes())
    return errors.setup_error(number, None, "bwrap", text, hint)


class Descriptors:
    """What bwrap inherits, by the lowest numbers: its limit of open files is the command's."""

    def __init__(self, passed: Sequence[int]) -> None:
        """passed: those of the command, which keep their numbers."""
        self._passed = passed
        self.moved: dict[int, int] = {}

    def has_room(self, reserved: int = 0) -> bool:
        used = len(self._passed) + len(self.moved) + reserved
        return bool(used < _native.lib.SBX_MOST_PASSED)

    def take(self, fd: int) -> str:
        """The number that bwrap is told."""
        number = 3
        while number in self._passed or number in self.moved:
            number += 1
        self.moved[number] = fd
        return str(number)


# ---- the gate --------------------------------------------------------------------------------


class Gate:
    """The seccomp program as a pipe: what bwrap waits for when all its mounts are done.

    The first instruction is in the pipe from the start. When it is gone bwrap has come to it.
    """

    def __init__(self, program: bytes = ALLOW_ALL) -> None:
        self.is_open = False
        self.said = b""  # by bwrap: JSON
        self._program = program
        self._fds: list[int] = []
        self._pause = 0.0002
        try:
            self._fds += os.pipe()
            self._fds += os.pipe()
        except OSError as error:
            self.close()
            number = error.errno or 0
            hint = _plan.hint("pipe", 0, number)
            raise errors.setup_error(
                number, None, "pipe", "make the pipes of the run", hint
            ) from None
        self._end, self._writer, self._reader, self._status = self._fds
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        os.write(self._writer, program[:8])

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def options(self, number: Callable[[int], str] = str) -> list[str]:
        """number: what becomes of a descriptor of ours in bwrap."""
        return ["--json-status-fd", number(self._status), "--seccomp", number(self._end)]

    def descriptors(self) -> tuple[int, int]:
        """Those that bwrap has to inherit."""
        return self._status, self._end

    def started(self) -> None:
        """bwrap has its descriptors: closes ours, so that its end is seen."""
        self._close(self._status)
        self._close(self._end)

    def is_reached(self) -> bool:
        waiting = bytearray(4)
        fcntl.ioctl(self._writer, termios.FIONREAD, waiting)
        return not any(waiting) and self.pid() is not None

    def is_over(self) -> bool:
        """Whether bwrap has ended, and said all."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._reader, 4096):
                self.said += part
            return True
        return False

    def pid(self) -> int | None:
        """Of the process in the new namespaces, as soon as it is known."""
        self.is_over()
        found = re.search(rb'"child-pid": *([0-9]+)', self.said)
        return int(found[1]) if found else None

    def pause(self, most: float = 0.002) -> None:
        """Until something is said, or it is time to look again."""
        self._pause = min(self._pause * 1.5, most)
        select.select([self._reader], [], [], self._pause)

    def open(self) -> None:
        """Lets the command start. BrokenPipeError where bwrap has ended, or does not read."""
        rest = self._program[8:]
        for _ in range(100):
            with contextlib.suppress(BlockingIOError):  # some pipes hold a page only (pipe(7))
                rest = rest[os.write(self._writer, rest) :]
            if not rest:
                break
            select.select([], [self._writer], [], 0.1)
        else:
            raise BrokenPipeError(errno.EPIPE, "bwrap does not read its filter")
        self.is_open = True
        self._close(self._writer)

    def has_exit_status(self) -> bool:
        """Whether bwrap told the exit status of a command, which therefore was there."""
        self.is_over()
        return b'"exit-code"' in self.said

    def close(self) -> None:
        for fd in list(self._fds):
            self._close(fd)

    def _close(self, fd: int) -> None:
        if fd in self._fds:
            self._fds.remove(fd)
            os.close(fd)


# ---- what is mounted -------------------------------------------------------------------------

Entry = namedtuple("Entry", "number parent device root point is_read_only type")


def table(pid: int | str = "self") -> list[Entry]:
    """What a process has mounted below its root; [] if it is gone."""
    try:
        with open(f"/proc/{pid}/mountinfo", "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return []
    return [_entry(line.split(b" ")) for line in lines if line]


def _entry(words: list[bytes]) -> Entry:
    kind = words.index(b"-", 6) + 1  # there are optional fields before it
    root, point = (_OCTAL.sub(_character, word) for word in words[3:5])
    flags = words[5].split(b",")
    names = os.fsdecode(root), os.fsdecode(point)
    numbers = int(words[0]), int(words[1])
    return Entry(*numbers, words[2], *names, b"ro" in flags, os.fsdecode(words[kind]))


_OCTAL = re.compile(rb"\\([0-7]{3})")


def _character(found: re.Match[bytes]) -> bytes:
    return bytes([int(found[1], 8)])


class Place:
    """A file or directory of the caller's that something is bound from: named, and identified."""

    def __init__(self, fd: int, entries: Sequence[Entry]) -> None:
        self.path = os.readlink(f"/proc/self/fd/{fd}")
        with open(f"/proc/self/fdinfo/{fd}") as lines:
            number = next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))
        on = next((entry for entry in entries if entry.number == number), None)
        if on is None or not is_below(self.path, on.point):
            raise UnsupportedError(f"{self.path} cannot be found among the mounts of the caller")
        self.device = on.device
        self.inner = _below(on.root, self.path[len(on.point.rstrip("/")) :])

    def is_at(self, entry: Entry) -> bool:
        return bool(entry.device == self.device and entry.root == self.inner)


def is_below(path: str, above: str) -> bool:
    return path == above or path.startswith(above.rstrip("/") + "/")


def _below(above: str, rest: str) -> str:
    """A path and what follows it, which is nothing or begins with a slash."""
    return above.rstrip("/") + rest or "/"


class Wanted:
    """One mount that was asked for: where it has to be, and how it is known.

    source: what is bound there. type: of a file system, which is_new unless it is the caller's.
    """

    def __init__(
        self,
        target: str,
        source: Place | None = None,
        type: str = "",
        read_only: bool = False,
        is_new: bool = True,
    ) -> None:
        self.target = target
        self.source = source
        self.type = type
        self.read_only = read_only
        self.is_new = is_new

    def is_it(self, entry: Entry, host: Sequence[Entry]) -> bool:
        if entry.point != self.target or (self.read_only and not entry.is_read_only):
            return False
        if self.source is not None:
            return self.source.is_at(entry)
        if self.is_new and any(one.device == entry.device for one in host):
            return False
        kind = "tmpfs" if self.type == "dev" else self.type
        return bool(entry.type == kind and entry.root == "/")

    def comes_with_it(self, entry: Entry, host: Sequence[Entry], is_seen: bool) -> bool:
        """Whether a mount below it belongs to it. is_seen: nothing covers all of it."""
        if not is_below(entry.point, self.target):
            return False
        if self.source is None:
            return self.type in ("proc", "dev") and entry.point != self.target
        rest = entry.point[len(self.target.rstrip("/")) :]
        point = _below(self.source.path, rest)
        # bwrap leaves writable what the caller has no way to, and so no command either.
        return any(
            one.point == point and one.device == entry.device and one.root == entry.root
            for one in host
        ) and (entry.is_read_only or not (self.read_only and is_seen and os.path.exists(point)))


def find_fault(entries: Sequence[Entry], wanted: Sequence[Wanted]) -> str:
    """Why the mounts of a process are not those that were wanted, or ""."""
    host = table()
    left = list(entries)
    for one in wanted:
        found = next((entry for entry in left if one.is_it(entry, host)), None)
        if found is None:
            return f"what belongs on {one.target} is not there"
        left.remove(found)
    covered = {(entry.parent, entry.point) for entry in entries}
    for entry in left:
        is_seen = (entry.number, entry.point) not in covered
        if not any(one.comes_with_it(entry, host, is_seen) for one in wanted):
            return f"something else is mounted on {entry.point}"
    return ""


def protect_devices(pid: int, wanted: Sequence[Wanted]) -> None:
    """Makes the mounts of device nodes read-only, which does not hinder their use.

    They are the host's own nodes, and bwrap has no way to bind them so: root's commands could
    change their modes and owners. SetupError.
    """
    devs = [one.target for one in wanted if one.type == "dev"]
    nodes = [
        entry.point
        for entry in table(pid)
        if entry.type not in ("tmpfs", "devpts") and any(is_below(entry.point, dev) for dev in devs)
    ]
    failures: list[int] = []
    if nodes:
        # A thread whose root and namespace are its own, and that ends afterwards.
        thread = threading.Thread(target=_make_read_only, args=(pid, nodes, failures), daemon=True)
        thread.start()
        thread.join()
    if failures:
        what = "bwrap: make the device nodes of its /dev read-only"
        raise errors.setup_error(failures[0], None, "mount", what)


def _make_read_only(pid: int, paths: Sequence[str], failures: list[int]) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    attr = (ctypes.c_uint64 * 4)(1, 0, 0, 0)  # struct mount_attr: MOUNT_ATTR_RDONLY
    try:
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        failures.append(error.errno or errno.EIO)
        return
    # unshare(CLONE_FS), setns(CLONE_NEWNS)
    result = libc.unshare(0x200) or libc.setns(fd, 0x20000)
    for path in () if result else paths:  # mount_setattr(2), AT_FDCWD, AT_SYMLINK_NOFOLLOW
        name = ctypes.c_char_p(os.fsencode(path))
        size = ctypes.c_size_t(ctypes.sizeof(attr))
        result = result or libc.syscall(442, -100, name, 0x100, attr, size)
    if result:
        failures.append(ctypes.get_errno())
    os.close(fd)


# ---- what bwrap is told ----------------------------------------------------------------------


class Layout:
    """The mounts of one run: the options for bwrap, and what has to be found afterwards."""

    def __init__(
        self,
        box: Sandbox,
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
        if (resolver := _plan.resolver_of(box)) is not None:
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

    def _place(self, fd: int) -> Place:
        return Place(fd, self._entries)

    def _bind(self, option: str, source: Place, target: str, fd: int = -1) -> None:
        path = source.path
        if self._sources.get(path, ["--ro-bind"])[0] == "--ro-bind":
            self._sources[path] = [option, path, _HERE]
        if path == "/":
            self._unnamed[_ROOT] = self._sources[path]
        words = [option, _ROOT if path == "/" and self._tool.is_staged else path]
        # One is kept for the options.
        if fd >= 0 and self._tool.binds_descriptors and self._descriptors.has_room(1):
            by_descriptor = ["--bind-fd", self._descriptors.take(fd)]
            if self._tool.is_staged:
                self._sources[path] = [*by_descriptor, _HERE]
            else:
                words = by_descriptor
        self._options += [*words, target]
        self.wanted.append(Wanted(target, source, read_only=option == "--ro-bind"))

    def _add_hole(self, path: str) -> None:
        with doing(path, "target", f"writable path {path}: target"):
            fd = _native.open_in_root(self._root_fd, path, os.O_PATH | os.O_CLOEXEC)
        self._undo.callback(os.close, fd)
        source = self._place(fd)
        root = self._view.over["/"] or "/"
        if source.path == root or not is_below(source.path, root):
            raise self._error(path, "target", errno.EBUSY, f"writable path {path}: target")
        self._bind("--bind", source, source.path[len(root.rstrip("/")) :], fd)

    def _seal(self) -> None:
        """What the root shows of the host's kernel becomes read-only, as in _plan.py."""
        paths = _plan.seal_paths(self._view.over["/"] or "/", "/", ())
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
            is_sealed = self._covers and _plan.is_of_the_kernel(source.path)
            option = "--ro-bind" if mount.read_only or is_sealed else "--bind"
            self._bind(option, source, inside)
            self._view.put(inside, source.path)
            if self._covers and mount.recursive and not is_sealed:
                self._seal_each(_plan.seal_paths(source.path, inside, ()))
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
        return errors.setup_error(number, path, step, what, _plan.hint(step, 0, number))


def _minimal_dev(target: str) -> list[str]:
    """With a shm as others have it, of the kernel's default size."""
    return ["--dev", target, "--perms", "1777", "--tmpfs", f"{target}/shm"]
