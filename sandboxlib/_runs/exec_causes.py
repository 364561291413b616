# SPDX-License-Identifier: Apache-2.0
"""Why a command could not be executed: looks at its file after the exec failed, and proposes what
to do. It is imported only then. See Look for what keeps a hostile file from misusing that.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from collections.abc import Iterator, Sequence

from .._host import machine
from .._spec.spec import Spec
from ..errors import printable
from .look import Found, Look

_MOST = 4  # interpreters of interpreters (BINPRM_BUF_SIZE and the kernel's own limit are alike)
_HEADER = 256  # bytes that the kernel reads of a script's first line
_BUILTINS = frozenset(
    "cd export source . alias umask ulimit set unset eval exit exec trap read wait".split()
)
_ELF = b"\x7fELF"
#: e_machine of elf(5): the names that uname(2) gives machines.
_MACHINES = {
    **{2: "sparc", 3: "i386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm"},
    **{43: "sparc64", 62: "x86_64", 183: "aarch64", 243: "riscv64", 258: "loongarch64"},
}
_KINDS = (
    (b"MZ", "a program for Windows (MZ)"),
    (b"\xcf\xfa\xed\xfe", "a program for macOS (Mach-O)"),
    (b"\xca\xfe\xba\xbe", "a program for macOS (Mach-O), or a class of Java"),
    (b"\x1f\x8b", "an archive (gzip)"),
    (b"PK\x03\x04", "an archive (zip)"),
    (b"\xfd7zXZ", "an archive (xz)"),
    (b"BZh", "an archive (bzip2)"),
    (b"\x28\xb5\x2f\xfd", "an archive (zstd)"),
    (b"!<arch>\n", "a library (ar)"),
)


class Call:
    """An exec that failed.

    argv: the words of the command. paths: where the program was looked for. directory: the cwd of
    the command. index: of the path that failed; -1 if none of them exists; None if that is unknown.
    """

    def __init__(
        self,
        box: Spec,
        argv: Sequence[str],
        paths: Sequence[str],
        directory: str,
        index: int | None,
    ) -> None:
        self.box = box
        self.argv, self.paths, self.directory = argv, paths, directory
        self.index = index
        # As the files see it: ids of a user namespace are the caller's outside.
        self.uid = box._ids[0] if box._ids is not None and os.geteuid() == 0 else os.geteuid()

    @property
    def program(self) -> str:
        return self.argv[0]


def cause(call: Call, look: Look, error: int) -> str:
    """The cause and the remedy, or "" if none can be told."""
    return printable(next(_causes(call, look, error), ""))


def _causes(call: Call, look: Look, error: int) -> Iterator[str]:
    is_gone = error in (errno.ENOENT, errno.ENOTDIR)
    if is_gone and call.index is not None and call.index < 0 and "/" not in call.program:
        return _not_in_path(call)
    if look.find(call.directory).is_missing():
        call.directory = "/"  # where a command runs whose cwd may be missing
    if call.index is None:
        there = (look.find(path, call.directory).is_there for path in call.paths)
        call.index = next((index for index, is_there in enumerate(there) if is_there), -1)
    if is_gone and call.index < 0:
        return _not_found(call, look)
    path = call.paths[max(call.index, 0)]
    found = look.find(path, call.directory)
    if error == errno.EACCES:
        return _denied(call, look, found, path)
    if found.hidden and (is_gone or error == errno.ENOEXEC):
        return iter([f"it lies in {found.hidden}, which only the command sees"])
    if is_gone:
        return _interpreter(call, look, found)
    return _not_a_program(call, look, found, path) if error == errno.ENOEXEC else iter(())


# ---- not there: each function yields causes, the likely one first ------------------------------


def _not_found(call: Call, look: Look) -> Iterator[str]:
    program = call.program
    yield from _not_split(call)
    if "/" not in program:
        yield from _not_in_path(call)
    if re.match(r"[~$]", program):
        yield f"no shell expands {program.partition('/')[0]!r}: write the whole path"
    found = look.find(program, call.directory)
    why = found.why_missing()
    if not program.startswith("/"):
        text = f"a relative path counts from the command's directory {call.directory!r}"
        text = f"{text}: {why}" if why else text
        yield f"{text}; give cwd=, or an absolute path inside the root"
    if not why:
        yield "it is looked for inside the root"
    if found.hidden == "the private /tmp":
        yield f"{why}: tmp='root' leaves it, or bind the program"
    if call.box._directory != "/" and _is_outside(program):
        yield f"{why}; it is there outside of the root: Mount.bind shows it inside"
    yield f"{why}; the path counts inside the root"


def _not_split(call: Call) -> Iterator[str]:
    program = call.program
    words = program.split()
    if len(words) == 1 and words[0] != program:
        yield f"white space belongs to the name: write {words[0]!r}"
    if len(words) > 1 and words[0] in _BUILTINS and len(call.argv) == 1:
        yield f"{words[0]} is a command of the shell itself: ['sh', '-c', {program[:60]!r}]"
    elif len(words) > 1 and len(call.argv) == 1:
        text = f"one str is one program, and is never split: write the list {_split(program)}"
        is_shell = re.search(r"[|&;<>$*`]", program)
        yield f"{text}; a line of a shell is ['sh', '-c', LINE]" if is_shell else text


def _is_outside(path: str) -> bool:
    return not machine.may_hang(path, machine.hanging_mounts()) and os.path.isfile(path)


def _quoted(path: str) -> str:
    """A path as a shell takes it: a hostile name must not become a command of who follows us."""
    import shlex

    return shlex.quote(path)


def _split(program: str) -> str:
    import shlex

    try:
        words = shlex.split(program)
    except ValueError:
        words = program.split()
    text = repr(words)
    return text if len(text) < 200 else f"{text[:200]}..."


def _not_in_path(call: Call) -> Iterator[str]:
    program = call.program
    yield from _not_split(call)
    if program in _BUILTINS:
        line = " ".join(call.argv)[:60]
        yield f"{program} is a command of the shell itself: ['sh', '-c', {line!r}]"
    name, is_variable, _ = program.partition("=")
    if is_variable and name.isidentifier():
        text = f"{name}= sets a variable in a shell only: extra_env={{{name!r}: ...}}"
        yield f"{text}, and without it in the command"
    directories = ":".join(os.path.dirname(path) for path in call.paths)[:200]
    text = "it is looked for inside the root, in the PATH of the sandbox"
    yield f"{text} ({directories}); give its path, or extra_env={{'PATH': ...}}"


# ---- there, but refused ----------------------------------------------------------------------


def _denied(
    call: Call, look: Look, found: Found, path: str, is_interpreter: bool = False
) -> Iterator[str]:
    what = f"its interpreter {path!r}" if is_interpreter else "it"
    if found.hidden:
        yield f"{what} lies in {found.hidden}, which only the command sees"
    for name, status in found.way:
        if not _may(call, status):
            text = f"the command's uid {call.uid} may not enter {name} ({_mode(status)})"
            yield f"{text}: chmod o+x {_quoted(name)}, or another user="
    if found.denied:
        yield f"uid {os.geteuid()} may not enter {found.denied}"
    if found.status is None:
        return
    mode = found.status.st_mode
    if stat.S_ISDIR(mode):
        yield f"{what} is a directory, and no program"
    elif not stat.S_ISREG(mode):
        yield f"{what} is {_kind(mode)}, and no program"
    header = look.read(found, _HEADER)
    if not _may(call, found.status):
        text = f"{what} has no permission to execute ({_mode(found.status)}): chmod +x"
        by_name = f"[{_line_of(header) or 'sh'!r}, {path!r}]"
        is_script = not is_interpreter and header and not header.startswith(_ELF)
        yield f"{text}, or name its interpreter: {by_name}" if is_script else text
    if look.is_noexec(found):
        yield f"{what} lies on a mount with noexec: bind it from elsewhere, or remount that exec"
    interpreter = _line_of(header)
    if interpreter and not is_interpreter:
        other = look.find(interpreter, call.directory)
        yield from _denied(call, look, other, interpreter, True)


def _may(call: Call, status: os.stat_result) -> bool:
    """Whether the mode lets the command execute a file, or enter a directory."""
    mode = status.st_mode
    if call.uid == 0:  # with dac_override, which 'default' has
        return bool(mode & 0o111) or stat.S_ISDIR(mode)
    if status.st_uid == call.uid:
        return bool(mode & 0o100)
    return bool(mode & 0o011)  # the groups of the command may give it either


def _mode(status: os.stat_result) -> str:
    return f"mode {stat.S_IMODE(status.st_mode):04o}, owner {status.st_uid}"


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "no regular file")


# ---- interpreters and loaders ----------------------------------------------------------------


def _line_of(header: bytes) -> str:
    """The interpreter that the first line of a script names, or ""; as load_script() of the kernel
    reads it, so it may end in a carriage return.
    """
    if not header.startswith(b"#!"):
        return ""
    words = header[2:].split(b"\n")[0].strip(b" \t").replace(b"\t", b" ").split(b" ")
    return os.fsdecode(words[0].split(b"\0")[0])


def _interpreter(call: Call, look: Look, found: Found, depth: int = 0) -> Iterator[str]:
    """Why a program that exists is told as missing: its interpreter is."""
    header = look.read(found, _HEADER)
    name = _line_of(header)
    if header.startswith(_ELF):
        yield from _loader(call, look, found, header)
    elif name.endswith("\r"):
        text = f"the first line of {found.path} ends with CR LF, so its interpreter is {name!r}"
        yield f"{text}: sed -i 's/\\r$//' {_quoted(found.path)}"
    elif name and depth < _MOST:
        other = look.find(name, call.directory)
        if other.is_there:
            yield from _interpreter(call, look, other, depth + 1)
        text = f"the first line of {found.path} names the interpreter {name!r}"
        if why := other.why_missing():
            text = f"{text}: {why}"
        yield f"{text}; install it in the root, or name another: [INTERPRETER, {call.program!r}]"
    yield "the file is there, but not its interpreter or loader"


def _loader(call: Call, look: Look, found: Found, header: bytes) -> Iterator[str]:
    if machines := _foreign(header):
        yield f"{found.path} is {machines}, and binfmt_misc's interpreter for it is not in the root"
    if name := _loader_of(look, found, header):
        text = f"{found.path} takes the dynamic loader {name!r}"
        if why := look.find(name, call.directory).why_missing():
            text = f"{text}: {why}"
        remedy = "bind the directories of its libraries as well (/lib, /lib64, /usr/lib)"
        yield f"{text}; {remedy}, or use a static program"


def _loader_of(look: Look, found: Found, header: bytes) -> str:
    """The path in PT_INTERP of an ELF file (elf(5)), or ""."""
    is_64, order = header[4] == 2, "<" if header[5] == 1 else ">"
    try:
        if is_64:
            (start,) = struct.unpack_from(order + "Q", header, 32)
            size, count = struct.unpack_from(order + "HH", header, 54)
        else:
            (start,) = struct.unpack_from(order + "I", header, 28)
            size, count = struct.unpack_from(order + "HH", header, 42)
        table = look.read(found, min(size * count, 4096), start)
        for index in range(min(count, 64)):
            (kind,) = struct.unpack_from(order + "I", table, index * size)
            if kind != 3:  # PT_INTERP
                continue
            form, at = ("Q", 8) if is_64 else ("I", 4)
            (offset,) = struct.unpack_from(order + form, table, index * size + at)
            return os.fsdecode(look.read(found, _HEADER, offset).split(b"\0")[0])
    except (struct.error, OverflowError):
        pass
    return ""


# ---- no program for this machine ---------------------------------------------------------------


def _foreign(header: bytes) -> str:
    """Both machines of an ELF file that this one does not run, or ""."""
    if len(header) < 20:
        return ""
    (number,) = struct.unpack_from("<H" if header[5] == 1 else ">H", header, 18)
    name, ours = _MACHINES.get(number, f"machine {number} of elf(5)"), os.uname().machine
    if number == 62 and header[4] == 1:
        name = "x32"
    if name in ("mips", "aarch64", "ppc64") and header[5] == (2 if name == "aarch64" else 1):
        name += {"mips": "el", "aarch64": "_be", "ppc64": "le"}[name]
    if name == ours or (name == "arm" and ours.startswith("armv")):
        return ""
    if name == "i386" and re.fullmatch("i[3-6]86", ours):
        return ""
    return f"a program for {name}, and this machine is {ours}"


def _not_a_program(
    call: Call, look: Look, found: Found, path: str, depth: int = 0
) -> Iterator[str]:
    header = look.read(found, _HEADER)
    name = found.path or path
    if found.status is not None and found.status.st_size == 0:
        yield f"{name} is empty"
    if header.startswith(_ELF):
        if machines := _foreign(header):
            remedy = "take a build for this machine, or register qemu in binfmt_misc (flag F)"
            yield f"{name} is {machines}: {remedy}"
        yield f"{name} is a broken or truncated program (ELF)"
    for magic, kind in _KINDS:
        if header.startswith(magic):
            yield f"{name} is {kind}"
    if header.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        yield f"{name} begins with a byte order mark, so the kernel sees no #!: save it without"
    interpreter = _line_of(header)
    if interpreter and depth < _MOST:
        other = look.find(interpreter, call.directory)
        if why := next(_not_a_program(call, look, other, interpreter, depth + 1), ""):
            yield f"the interpreter of {name} is no program: {why}"
    if header.startswith(b"#!"):
        yield f"the first line of {name} names no interpreter behind #!"
    text = "neither a program nor a script that begins with #!"
    yield f"{text}; a script of the shell runs as ['sh', {path!r}]"
