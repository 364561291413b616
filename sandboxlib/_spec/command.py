# SPDX-License-Identifier: Apache-2.0
"""Command: an argv with its environment, streams and times. A Sandbox says where it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from .. import _types
from .._values import (
    ENCODING,
    Value,
    check_choice,
    check_descriptor,
    check_number,
    check_path,
    check_seconds,
    check_size,
    short,
    unknown_keyword,
)
from ..errors import SpecError, SpecTypeError
from .inputs import check_inputs, check_outputs
from .limits import Limits
from .streams import CAPTURE, STDOUT, is_capture, is_devnull, is_sink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import TypedDict

    from . import command as _command  # noqa: PLW0406

    class CommandOptions(TypedDict, total=False, closed=True):
        """The keyword arguments of Command. (At run time __getattr__ makes it from Command.)"""

        cwd: _types.Path | None
        extra_env: _types.Env | None
        env: _types.Env | None
        executable: _types.Path | bytes | None
        stdin: _types.Stdin
        stdout: _types.Sink
        stderr: _types.Sink
        inputs: _types.Inputs
        outputs: Iterable[_types.Path]
        changes: _types.Keep
        limits: Limits | None
        timeout: float | None
        grace: float
        max_output: int | str | None
        on_overflow: _types.Overflow
        pass_fds: Iterable[int]
        pty: bool | tuple[int, int]
        pty_stderr: _types.Literal["terminal", "pipe"]

else:
    _command = sys.modules[__name__]  # this module, whose CommandOptions is not among its globals

    def __getattr__(name):
        """Makes CommandOptions from the annotations of Command: importing needs no typing then."""
        if name != "CommandOptions":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import typing

        hints = typing.get_type_hints(Command.__init__)
        fields = {field: hints[field] for field in Command._fields if field != "argv"}
        options = typing.TypedDict(name, fields, total=False)
        options.__doc__ = "The keyword arguments of Command, which says all about them."
        globals()[name] = options
        return options


_NO_INPUTS: _types.KeptInputs = MappingProxyType({})
MOST_PASSED = 32  # the same as SBX_MOST_PASSED in csrc/sandbox.h

#: The environment of a command that has neither env nor extra_env.
BASE_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def environment_vars(extra_env: _types.Env | None = None) -> dict[str, str]:
    """Returns the environment of a command: a new dict, BASE_ENVIRONMENT updated by extra_env.

    extra_env: mapping of str or bytes to str or bytes, as in Command; None (the default): nothing.
        Bytes come back decoded as os.fsdecode does.

    Raises the errors of Command.
    """
    return {**BASE_ENVIRONMENT, **decode_variables("extra_env", extra_env or {})}


class Command(Value):
    """A command with its environment, streams and times: a frozen value, checked when it is made.

        cc = Command(["cc", "-c", "a.c"], "/src", timeout=60)
        box.run(cc)
        box.run(cc.replace(timeout=120))

    Every call that runs a command takes either a Command or the arguments of one:
    `box.run(["cc", "-c", "a.c"], cwd="/src", timeout=60)`.

    argv: list of str, bytes or paths; or a str that names one program and is never split. A program
        without a slash is looked up in the PATH of the sandbox, inside the root.
    cwd: str or path, inside the root. None (the default): '/'; with root='/' the caller's
        directory, or '/' if the sandbox has no such directory.
    extra_env: mapping of str to str, added to BASE_ENVIRONMENT or to env. None (the default): none.
    env: mapping of str to str, in place of BASE_ENVIRONMENT. None (the default): BASE_ENVIRONMENT.
        In both, names and values may be bytes; the fields have them decoded as os.fsdecode does.
    executable: str, bytes or path, the program to run in place of the first of argv, which the
        program then gets as its own name, and which may be empty. As in subprocess.Popen, one
        without a slash is looked up in PATH. None (the default): the first of argv.
    stdin: bytes, a file, or a descriptor. None (the default) or DEVNULL: empty. With start() also
        CAPTURE.
    stdout, stderr: CAPTURE (the default): the Result has the bytes. A file or a descriptor: the
        command writes there. None or DEVNULL: discarded. A function: called with bytes as they
        arrive.
        Lines(function): called with each line. Tee(file): copied there as it arrives.
        stderr=STDOUT: both go where stdout goes. An exception of a function ends the run.
        docs/streams.md has more.
    inputs: mapping, for a root that is an Overlay or an Image: what the command sees at which path:
        File, Tree, or a path (PathLike) or bytes, both short for a File. A relative path starts at
        cwd. The command may change its copy, and nothing else. docs/inputs.md has more. {} by
        default.
    outputs: iterable of str or paths, for such a root: patterns of what Result.outputs has
        afterwards. `*` and `?` stop at '/', `**` between two slashes does not, `[*]` is a star. The
        directories above are made before the run. () by default.
    changes: str, for a root that is an Overlay: whether Result.changes has what the run changed in
        it. 'drop' (the default): no. 'keep': yes; whoever made the run has to close them.
        'on-failure': only if the Result is not ok.
    limits: Limits, which replace those of the Sandbox field by field. With another oom_score_adj
        the run gets new namespaces. None (the default): the limits of the Sandbox.
    timeout: float, seconds from 0 to 1e9; then every process of the run is killed, and
        Result.timed_out is True. None (the default): no limit.
    grace: float, seconds from 0 to 1e9. After the timeout every process gets SIGTERM, and SIGKILL
        only so much later. 0 (the default): SIGKILL at once.
    max_output: int, bytes, or a str like "200M": how much of stdout, and of stderr, is kept or
        passed on. None (the default): all. Result.limits_hit has 'output' if there was more.
    on_overflow: str. 'truncate' (the default): output beyond max_output is read and counted only.
        'kill': it ends the run.
    pass_fds: iterable of int, up to 32 more descriptors, which the command gets under the same
        numbers; () by default.
    pty: bool, or (rows, columns). True: stdin, stdout and stderr are a new terminal, of 24 rows and
        80 columns, which is the controlling terminal of the command; Result.out has its output.
        False (the default): no terminal.
    pty_stderr: str. 'terminal' (the default): with a pty, stderr is the terminal too. 'pipe': only
        stdin and stdout are, and stderr goes where `stderr` says.

    CAPTURE, STDOUT and DEVNULL are the numbers of subprocess.PIPE, STDOUT and DEVNULL, which are
    understood as well.

    A Command can be hashed and pickled, unless it holds files, functions or descriptors: that
    raises TypeError.

    Raises SpecError (a ValueError) if a value is wrong, or two of them contradict each other, and
    SpecTypeError for a value of the wrong type, or an unknown keyword argument.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    _fields = (
        *("argv", "cwd", "extra_env", "env", "executable", "stdin", "stdout", "stderr"),
        *("inputs", "outputs", "changes", "limits", "timeout", "grace", "max_output"),
        *("on_overflow", "pass_fds", "pty", "pty_stderr"),
    )
    # An instance keeps in its __dict__ only the fields that are not the default. Most have few of
    # them, and every run makes an instance.
    cwd: str | None = None
    extra_env: _types.Variables | None = None
    env: _types.Variables | None = None
    executable: str | None = None
    stdin: _types.Stdin = None
    stdout: _types.Sink = CAPTURE
    stderr: _types.Sink = CAPTURE
    inputs: _types.KeptInputs = _NO_INPUTS
    outputs: tuple[str, ...] = ()
    changes: _types.Keep = "drop"
    limits: Limits | None = None
    timeout: float | None = None
    grace: float = 0.0
    max_output: int | None = None
    on_overflow: _types.Overflow = "truncate"
    pass_fds: tuple[int, ...] = ()
    pty: bool | tuple[int, int] = False
    pty_stderr: _types.Literal["terminal", "pipe"] = "terminal"
    #: argv and environment as the core takes them; the directories of PATH, each ending in a slash.
    _argv: list[bytes]
    _settings: list[bytes]
    _search: list[bytes]
    #: False: the run has options that only _runs/extras.py knows.
    _is_plain: bool = True

    def __init__(
        self,
        argv: _types.Argv,
        cwd: _types.Path | None = None,
        extra_env: _types.Env | None = None,
        *,
        env: _types.Env | None = None,
        executable: _types.Path | bytes | None = None,
        stdin: _types.Stdin = None,
        stdout: _types.Sink = CAPTURE,
        stderr: _types.Sink = CAPTURE,
        inputs: _types.Inputs = _NO_INPUTS,
        outputs: Iterable[_types.Path] = (),
        changes: _types.Keep = "drop",
        limits: Limits | None = None,
        timeout: float | None = None,
        grace: float = 0.0,
        max_output: int | str | None = None,
        on_overflow: _types.Overflow = "truncate",
        pass_fds: Iterable[int] = (),
        pty: bool | tuple[int, int] = False,
        pty_stderr: _types.Literal["terminal", "pipe"] = "terminal",
        **unknown: _types.NoReturn,
    ) -> None:
        if unknown:
            raise unknown_option("Command", unknown)
        put = self.__dict__  # a Value refuses setattr
        if executable is not None:
            put["executable"], put["_is_plain"] = _check_executable(executable), False
        put["_argv"] = encode_argv(argv, executable is not None)
        if cwd is not None:
            put["cwd"] = check_path("cwd", cwd)
        if extra_env is not None or env is not None:
            self._put_environment(extra_env, env)
        if not (stdin is None and stdout is CAPTURE and stderr is CAPTURE):
            self._put_streams(stdin, stdout, stderr)
        if limits is not None or changes != "drop" or inputs is not _NO_INPUTS or outputs != ():
            self._put_rare(limits, changes, inputs, outputs)
        if timeout is not None:
            put["timeout"] = check_seconds("timeout", timeout)
        if type(grace) is not float or grace:
            put["grace"] = check_seconds("grace", grace)
        if max_output is not None or on_overflow != "truncate":
            self._put_max_output(max_output, on_overflow)
        if pass_fds != ():
            put["pass_fds"] = _check_passed(pass_fds)
        if pty is not False or pty_stderr != "terminal":
            self._put_terminal(pty, pty_stderr, stdin, stdout, stderr)
        if grace or max_output is not None or pass_fds != () or pty is not False:
            put["_is_plain"] = False

    def _put_rare(self, limits: Any, changes: Any, inputs: Any, outputs: Any) -> None:
        put = self.__dict__
        if limits is not None:
            put["limits"] = check_limits(limits)
        check_choice("changes", changes, ("drop", "keep", "on-failure"))
        if changes != "drop":
            put["changes"], put["_is_plain"] = changes, False
        if checked := check_inputs(inputs, self.cwd):
            put["inputs"], put["_is_plain"] = MappingProxyType(checked), False
        if patterns := check_outputs(outputs, self.cwd):
            put["outputs"], put["_is_plain"] = patterns, False

    def _put_streams(self, stdin: Any, stdout: Any, stderr: Any) -> None:
        put = self.__dict__
        if not (stdin is None or is_devnull(stdin)):
            put["stdin"] = _check_stdin(stdin)
        for name, value in (("stdout", stdout), ("stderr", stderr)):
            if not is_capture(value):
                put[name] = None if is_devnull(value) else _check_output(name, value)

    def _put_environment(self, extra_env: Any, env: Any) -> None:
        put = self.__dict__
        for name, values in (("extra_env", extra_env), ("env", env)):
            if values is not None:
                put[name] = MappingProxyType(decode_variables(name, values))
        put["_settings"], put["_search"] = encode_environment(self.extra_env, self.env)

    def _put_terminal(self, pty: Any, apart: str, stdin: Any, stdout: Any, stderr: Any) -> None:
        check_choice("pty_stderr", apart, ("terminal", "pipe"))
        if pty is False:
            raise SpecError("pty_stderr='pipe' takes a pty")
        put = self.__dict__
        put["pty"] = terminal_size(pty, stdin, stdout, stderr, apart == "pipe")
        if apart != "terminal":
            put["pty_stderr"] = apart

    def _put_max_output(self, max_output: object, on_overflow: str) -> None:
        check_choice("on_overflow", on_overflow, ("truncate", "kill"))
        if max_output is not None:
            self.__dict__["max_output"] = check_size("max_output", max_output, 0, 1 << 62)
            if not any(is_capture(each) or is_sink(each) for each in (self.stdout, self.stderr)):
                text = "max_output takes an output that is captured, or goes to a sink"
                raise SpecError(text)
        elif on_overflow == "kill":
            raise SpecError("on_overflow='kill' takes max_output")
        self.__dict__["on_overflow"] = on_overflow

    @property
    def argv(self) -> tuple[str, ...]:
        """The program and its arguments; bytes are decoded as os.fsdecode does."""
        return tuple(map(os.fsdecode, self._argv))

    @property
    def _takes_upper(self) -> bool:
        """Whether somebody looks at what the run left in its root."""
        return self.changes != "drop" or bool(self.outputs)

    def _job_numbers(self) -> dict[str, int]:
        """The fields of struct sbx_job that this Command sets to a number that is not 0."""
        return {"terminal": 1} if self.pty else {}

    def replace(
        self,
        *,
        argv: _types.Argv | None = None,
        **changes: _types.Unpack[_command.CommandOptions],
    ) -> Command:
        """Returns a Command with other values: command.replace(timeout=60).

        argv: as in Command. None (the default): the same. changes: any keyword argument of Command.
        Raises the errors of Command.
        """
        if not changes.keys() <= _NAMES:
            raise unknown_option("Command.replace", changes, "argv")
        values = {**self._values(), **changes}
        return Command(**(values if argv is None else {**values, "argv": argv}))

    __replace__ = replace  # copy.replace() of Python 3.13

    def digest(self, box: _types.Sandbox, assume: Iterable[str] = ()) -> str:
        """Returns the digest of all that the result of this command in a Sandbox depends on: two
        machines find the same one. docs/digest.md lists what is in it.

            key = Command(["cc", "-c", "a.c"], "/src", inputs={"a.c": Path("a.c")}).digest(box)

        It is the digest of an Action of the Remote Execution API, "HASH/SIZE". It has the content
        of the inputs as it is at the time of the call, and runs nothing.

        box: Sandbox, where the command would run.
        assume: iterable of str, names from box.not_hermetic(command) that stand for something that
            is the same wherever the digest is compared; () by default. What they name is in the
            digest as it is written: a bind by its two paths.

        Raises SpecError, which names all of box.not_hermetic(command), for what has no digest;
        SetupError if an input or a layer cannot be read.
        """
        if not hasattr(box, "_digest_of"):
            raise SpecTypeError(f"digest: this is no Sandbox: {short(box)}")
        return box._digest_of(self, assume)

    def _with_argv(self, argv: object) -> Command:
        """Returns a Command with another argv, without checking the other fields again."""
        command = object.__new__(Command)
        encoded = encode_argv(argv, self.executable is not None)
        command.__dict__.update(self.__dict__, _argv=encoded)
        return command

    def _values(self) -> dict[str, Any]:
        """The fields that are not the default, as Command takes them."""
        values = {name: value for name, value in self.__dict__.items() if name in _NAMES}
        return {**values, "argv": self.argv}

    @property
    def _passing(self) -> str:
        """The name of a field that means something else in another process, or later, as a
        descriptor does; "" if there is none.
        """
        for name in ("stdin", "stdout", "stderr"):
            value = getattr(self, name)
            is_constant = type(value) is int and value < 0  # CAPTURE, STDOUT
            if not (value is None or is_constant or type(value) is bytes):
                return name
        return "pass_fds" if self.pass_fds else ""

    def _refuse_passing(self, what: str) -> None:
        if name := self._passing:
            text = "it holds a file, a function or a descriptor"
            raise TypeError(f"this Command cannot be {what}: {text} ({name})")

    def __hash__(self) -> int:
        self._refuse_passing("hashed")
        values = self._values()
        for name in values.keys() & _MAPPINGS:
            values[name] = frozenset(values[name].items())
        return hash(tuple(values.get(name) for name in self._fields))

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_passing("pickled")
        values = self._values()
        for name in values.keys() & _MAPPINGS:
            values[name] = dict(values[name])
        return values

    def __setstate__(self, state: object) -> None:
        """Only a Command that can be made comes out of a pickle."""
        if not isinstance(state, dict) or "argv" not in state or not state.keys() <= _NAMES:
            raise SpecTypeError("a pickle does not have what a Command is made of")
        Command.__init__(self, **state)

    def __copy__(self) -> Command:
        return self

    def __deepcopy__(self, memo: object) -> Command:
        return self

    def __str__(self) -> str:
        return repr(list(self.argv))

    def __repr__(self) -> str:
        """Leaves out the values of variables and the content of stdin, which may be secret."""
        text = [str(self)]
        for name, value in self._values().items():
            if name in ("env", "extra_env"):
                text.append(f"{name}=<{', '.join(value)}>")
            elif type(value) is bytes:
                text.append(f"{name}=<{len(value)} bytes>")
            elif name == "inputs":
                text.append(f"{name}={short(dict(value))}")
            elif name != "argv":
                text.append(f"{name}={value!r}")
        return f"Command({', '.join(text)})"


#: The arguments of Command, and the keyword arguments that every call takes.
_NAMES = frozenset(Command._fields)
_MAPPINGS = frozenset({"env", "extra_env", "inputs"})
OPTIONS = _NAMES - {"argv"}


def command_of(
    call: str, command: _types.Argv | Command, options: Mapping[str, Any], *names: str
) -> Command:
    """The Command of a call, which got a Command, or the arguments of one. SpecError.

    names: the other keyword arguments of the call, for the message.
    """
    if not options:
        return command if isinstance(command, Command) else Command(command)
    if not options.keys() <= OPTIONS:
        raise unknown_option(call, options, *names)
    if isinstance(command, Command):
        changes = ", ".join(f"{n}=..." for n in Command._fields if n in options)
        text = f"a Command has its options itself: command.replace({changes})"
        raise SpecTypeError(f"{call}: {text}, or an argv in its place")
    return Command(command, **options)


def unknown_option(call: str, options: Mapping[str, object], *names: str) -> SpecTypeError:
    """The error for an unknown keyword argument of a call that runs a command.

    names: the keyword arguments of the call that are not options of Command.
    """
    known = (*Command._fields[1:], *names)
    name = next(each for each in options if each not in known)
    return unknown_keyword(call, options, known, _where_it_belongs(name))


_AS_BYTES = "outputs are bytes: result.stdout.decode()"
#: What to write in place of a keyword argument that a Command has not: of subprocess here, and of a
#: Sandbox or Policy in spec.py.
ELSEWHERE: dict[str, str] = {
    "shell": "a line of a shell is ['sh', '-c', LINE]",
    "input": "the input of run() is stdin=BYTES, that of a Process communicate(BYTES)",
    "capture_output": "outputs are captured unless stdout= or stderr= says otherwise",
    **dict.fromkeys(("text", "encoding", "errors", "universal_newlines"), _AS_BYTES),
    "check": "Result.check() raises CommandFailed",
    "close_fds": "all descriptors are closed but 0, 1, 2 and those of pass_fds",
    "preexec_fn": "nothing of the caller runs before the exec; limits=, user= and umask= exist",
    "start_new_session": "each command has a session of its own",
}


def _where_it_belongs(name: str) -> str:
    """The class that has a keyword argument which Command has not; "" if none has it."""
    if name in Limits._fields:
        return f"Limits has it: limits=Limits({name}=...)"
    return ELSEWHERE.get(name, "")


# ---- argv and environment --------------------------------------------------------------------


def encode_argv(argv: object, has_executable: bool = False) -> list[bytes]:
    """The arguments of a command, encoded; SpecError if it is not a command.

    has_executable: bool. True: the first of them is a name only, which may be empty.
    """
    if not isinstance(argv, (list, tuple)):
        if isinstance(argv, (str, bytes, os.PathLike)):
            argv = (argv,)
        elif isinstance(argv, Sequence) and not isinstance(argv, (bytearray, memoryview)):
            argv = tuple(argv)
        else:
            text = f"the command is neither a list nor a str: {short(argv)}"
            is_words = isinstance(argv, Iterable) and not isinstance(argv, Mapping)
            raise SpecTypeError(f"{text}; make a list of it: list(words)" if is_words else text)
    try:
        encoded = [
            arg.encode(ENCODING, "surrogateescape") if type(arg) is str else os.fsencode(arg)
            for arg in argv
        ]
    except (TypeError, UnicodeEncodeError):
        raise _bad_word(argv) from None
    if not encoded or not (encoded[0] or has_executable):
        text = "its first word, the program, is ''" if encoded else "it has no word"
        raise SpecError(f"the command is empty: {text}")
    if b"\0" in b"".join(encoded):
        index = next(i for i, word in enumerate(encoded) if b"\0" in word)
        text = f"argv[{index}] contains a NUL byte, where the kernel would end it"
        raise SpecError(f"{text}: {short(argv[index])}")
    return encoded


def _bad_word(argv: Sequence[object]) -> SpecError:
    """The error for the first word of an argv that cannot be encoded."""
    for index, word in enumerate(argv):
        try:
            os.fsencode(word)  # type: ignore[arg-type]
        except UnicodeEncodeError as error:
            return SpecError(f"argv[{index}] cannot be encoded: {error}")
        except TypeError:
            break
    else:  # another thread changed the list
        return SpecError("the command changed while it was read")
    remedy = ""
    if word is None:
        remedy = ": leave it out, or give ''"
    elif isinstance(word, (int, float)):
        remedy = f": {str(word)!r}"
    elif isinstance(word, (list, tuple)):
        remedy = ": one list holds all words of one command; several commands are for map()"
    text = f"argv[{index}] of {short(argv)} is {short(word)}"
    return SpecTypeError(f"{text}, and has to be a str, bytes or a path{remedy}")


def _check_executable(value: object) -> str:
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise SpecTypeError(f"executable is neither str, bytes nor path: {short(value)}")
    return check_path("executable", os.fsdecode(value))


def decode_variables(what: str, variables: object) -> dict[str, str]:
    """The variables of a mapping, with bytes decoded as os.fsdecode does. SpecError."""
    if not isinstance(variables, (dict, Mapping)):
        example = f"{what}={{'NAME': 'value'}}"
        raise SpecTypeError(f"{what} is a {type(variables).__name__}, and not a mapping: {example}")
    decoded: dict[str, str] = {}
    for name, value in variables.items():
        # No message shows a value, as it may be secret.
        if not isinstance(name, (str, bytes)):
            raise SpecTypeError(f"the name of a variable is a {type(name).__name__}: {name!r}")
        if not isinstance(value, (str, bytes)):
            text = f"the value of the variable {name!r} is neither str nor bytes, but of type "
            text += type(value).__name__
            raise SpecTypeError(f"{text}; leave it out" if value is None else text)
        key = name if isinstance(name, str) else os.fsdecode(name)
        if not key or "=" in key:
            raise SpecError(f"not the name of a variable: {name!r}")
        if key in decoded:
            raise SpecError(f"{what} has the variable {key!r} twice, as str and as bytes")
        decoded[key] = value if isinstance(value, str) else os.fsdecode(value)
    return decoded


def whole_environment(
    extra_env: Mapping[str, str] | None, env: Mapping[str, str] | None
) -> dict[str, str]:
    """The environment of a command: `env` or BASE_ENVIRONMENT, updated by extra_env. Both were
    checked by decode_variables().
    """
    return {**(BASE_ENVIRONMENT if env is None else env), **(extra_env or {})}


def encode_environment(
    extra_env: Mapping[str, str] | None, env: Mapping[str, str] | None
) -> tuple[list[bytes], list[bytes]]:
    """The environment as NAME=VALUE, and the directories of its PATH, each ending in a slash."""
    whole = whole_environment(extra_env, env)
    # execvp(3): an empty entry is the current directory, and without PATH there is a default.
    directories = whole.get("PATH", "/bin:/usr/bin").split(":")
    if len(directories) > 9999:
        raise SpecError(f"PATH has {len(directories)} entries")
    try:
        settings = [os.fsencode(f"{name}={value}") for name, value in whole.items()]
        search = [os.fsencode(each + "/") if each else b"" for each in directories]
    except UnicodeEncodeError:
        raise SpecError("a variable of the environment cannot be encoded") from None
    if b"\0" in b"".join(settings):
        name = next(n for n, value in whole.items() if "\0" in n + value)
        raise SpecError(f"the variable {name!r} of the environment contains a NUL byte")
    return settings, search


Command._settings, Command._search = encode_environment(None, None)


# ---- single options --------------------------------------------------------------------------


def check_limits(value: object) -> Limits:
    if not isinstance(value, Limits):
        raise SpecTypeError(f"limits is not a Limits: {value!r}")
    return value


def _check_stdin(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if not is_capture(value):
        check_descriptor("stdin", value)
    return value


def _check_output(name: str, value: Any) -> Any:
    is_merged = name == "stderr" and type(value) is int and value == STDOUT
    if not (value is None or is_merged or is_sink(value)):
        check_descriptor(name, value)
    return value


def _check_passed(value: object) -> tuple[int, ...]:
    """The descriptors of pass_fds, sorted. The run checks whether they are open."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        remedy = f"; one is [{value!r}]" if isinstance(value, int) else ""
        raise SpecTypeError(f"pass_fds is not an iterable of descriptors: {value!r}{remedy}")
    fds = tuple(sorted({check_descriptor("a descriptor of pass_fds", fd) for fd in value}))
    if len(fds) > MOST_PASSED:
        raise SpecError(f"pass_fds has {len(fds)} descriptors, and may have {MOST_PASSED}")
    if fds and fds[0] < 3:
        raise SpecError("pass_fds has 0, 1 or 2, which are stdin, stdout and stderr")
    return fds


def terminal_size(
    value: Any, stdin: Any, stdout: Any, stderr: Any, is_apart: bool
) -> tuple[int, int]:
    """(rows, columns) of a pty; True stands for the size of a VT100. SpecError.

    is_apart: bool, whether stderr is not the terminal.
    """
    if value is not True and (not isinstance(value, (tuple, list)) or len(value) != 2):
        raise SpecTypeError(f"pty is neither a bool nor (rows, columns): {value!r}")
    if stdin is not None:
        raise SpecError("with a pty stdin is the terminal, and cannot be given")
    if not (is_sink(stdout) or is_capture(stdout)):
        raise SpecError("the output of a pty is captured, or goes to a function or sink")
    is_merged = type(stderr) is int and stderr == STDOUT
    if is_apart and is_merged:
        raise SpecError("pty_stderr='pipe' keeps stderr apart, and stderr=STDOUT does not")
    if not (is_apart or is_merged or is_capture(stderr)):
        text = "a pty has one output, which is stdout: stderr goes there as well"
        raise SpecError(f"{text}, unless pty_stderr='pipe'")
    size = (24, 80) if value is True else value
    rows, columns = (check_number("a number of pty", n, 1, 65535) for n in size)
    return rows, columns
