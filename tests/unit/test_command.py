# SPDX-License-Identifier: Apache-2.0
"""Command is a value; every call takes one, or its arguments, and says the same of wrong ones."""

from __future__ import annotations

import ast
import copy
import inspect
import os
import pickle
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
from lib.commands import each_call

import sandboxlib
from sandboxlib import (
    CAPTURE,
    DEVNULL,
    STDOUT,
    Command,
    Limits,
    Lines,
    Result,
    Runner,
    Sandbox,
    SpecError,
    SpecTypeError,
    Tee,
)
from sandboxlib._spec.command import command_of

FULL: dict[str, Any] = {
    "argv": ["cc", "-c", b"a.c", Path("b.c")],
    "cwd": Path("/src"),
    "extra_env": {"A": "1"},
    "env": {"PATH": "/bin"},
    "stdin": b"input",
    "stdout": None,
    "stderr": CAPTURE,
    "limits": Limits(cpu_time=3),
    "timeout": 60,
    "grace": 1.5,
    "max_output": 1000,
    "on_overflow": "kill",
}


# ---- a value -----------------------------------------------------------------------------------


def test_its_fields_are_what_it_was_made_of() -> None:
    command = Command(**FULL)
    assert command.argv == ("cc", "-c", "a.c", "b.c")
    assert (command.cwd, command.stdin, command.stdout) == ("/src", b"input", None)
    assert (dict(command.env or {}), dict(command.extra_env or {})) == (
        {"PATH": "/bin"},
        {"A": "1"},
    )
    assert (command.limits, command.timeout, command.grace) == (Limits(cpu_time=3), 60, 1.5)
    assert (command.max_output, command.on_overflow) == (1000, "kill")


def test_what_was_not_given_is_the_default() -> None:
    command = Command("true")
    assert command.argv == ("true",)
    assert (command.cwd, command.extra_env, command.env, command.stdin) == (None,) * 4
    assert (command.stdout, command.stderr, command.limits) == (CAPTURE, CAPTURE, None)
    assert (command.timeout, command.grace, command.max_output) == (None, 0.0, None)
    assert (command.on_overflow, command.pass_fds, command.pty) == ("truncate", (), False)
    assert Command("tty", pty=True).pty == (24, 80)


def test_the_same_arguments_make_an_equal_command() -> None:
    assert Command(**FULL) == Command(**FULL)
    assert hash(Command(**FULL)) == hash(Command(**FULL))
    assert Command(["true"]) == Command("true") == Command(b"true") == Command(Path("true"))
    assert len({Command("true"), Command(["true"]), Command("false")}) == 2
    for name, value in {**FULL, "argv": "ld", "stdout": CAPTURE, "stderr": STDOUT}.items():
        if name not in ("on_overflow", "env", "max_output"):
            assert Command("true").replace(**{name: value}) != Command("cc") or name == "stdout"


def test_devnull_is_none_and_the_numbers_are_those_of_subprocess() -> None:
    assert (subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL) == (CAPTURE, STDOUT, DEVNULL)
    streams = {"stdin": DEVNULL, "stdout": DEVNULL, "stderr": DEVNULL}
    command = Command("true", **streams)
    assert command == Command("true", stdin=None, stdout=None, stderr=None)
    assert hash(command) == hash(Command("true", stdout=None, stderr=None))
    assert pickle.loads(pickle.dumps(command)) == command


def test_bytes_in_the_environment_are_decoded_so_that_equal_ones_are_equal() -> None:
    command = Command("true", env={b"A": b"\xff"}, extra_env={"B": b"b", "C": "c"})
    assert command.env == {"A": os.fsdecode(b"\xff")}
    assert command.extra_env == {"B": "b", "C": "c"}
    assert command == Command("true", env={"A": "\udcff"}, extra_env={"B": "b", "C": "c"})
    assert Command("true", env=os.environb).env == dict(os.environ)
    assert sandboxlib.environment_vars({b"PATH": b"/x"}) == {"PATH": "/x"}


def test_the_executable_is_kept_as_str_and_lets_the_first_word_be_empty() -> None:
    made = [
        Command(["", "x"], executable=each) for each in ("/bin/sh", b"/bin/sh", Path("/bin/sh"))
    ]
    assert made[0] == made[1] == made[2]
    assert (made[0].executable, made[0].argv) == ("/bin/sh", ("", "x"))
    assert made[0] != Command(["x"]) != Command(["x"], executable="x")
    with pytest.raises(SpecError, match="the command is empty"):
        made[0].replace(executable=None)


def test_it_does_not_change() -> None:
    command = Command(**FULL)
    with pytest.raises(AttributeError, match="a Command does not change: cwd"):
        command.cwd = "/"
    with pytest.raises(AttributeError, match="a Command does not change: cwd"):
        del command.cwd
    with pytest.raises(TypeError):
        command.env["PATH"] = "/"  # type: ignore[index]
    words, env = ["true"], {"A": "1"}
    command = Command(words, env=env, stdin=bytearray(b"x"))
    words.append("x")
    env["B"] = "2"
    assert (command.argv, command.env, command.stdin) == (("true",), {"A": "1"}, b"x")


def test_replace_changes_what_it_is_told_and_checks_it() -> None:
    command = Command(**FULL).replace(timeout=5, argv=["ld"], env=None)
    assert (command.argv, command.timeout, command.env) == (("ld",), 5, None)
    assert (command.cwd, command.grace) == ("/src", 1.5)
    assert Command(**FULL).replace() == Command(**FULL)
    with pytest.raises(SpecError, match="timeout has to be from 0"):
        command.replace(timeout=-1)


def test_it_is_pickled_and_copied() -> None:
    for command in (Command(**FULL), Command("tty", pty=(2, 3)), Command(["\udcff", "b"])):
        assert pickle.loads(pickle.dumps(command)) == command
        assert copy.copy(command) is copy.deepcopy(command) is command


def holding() -> Iterator[tuple[str, Command]]:
    """Commands that hold something of this process, and the field that does."""
    yield "stdin", Command("cat", stdin=0)
    yield "stdin", Command("cat", stdin=CAPTURE).replace(stdin=sys.__stdin__)
    for value in (1, lambda data: None, Lines(print), Tee(1)):
        yield "stdout", Command("cat", stdout=value)
        yield "stderr", Command("cat", stderr=value)
    yield "pass_fds", Command("cat", pass_fds=[5])


def test_one_that_holds_files_functions_or_descriptors_is_neither_hashed_nor_pickled() -> None:
    for name, command in holding():
        for verb, use in (("hashed", hash), ("pickled", pickle.dumps)):
            with pytest.raises(TypeError, match=f"cannot be {verb}: .*\\({name}\\)"):
                use(command)
        assert copy.copy(command) is command
        assert command == command.replace()


def test_it_is_shown_without_what_may_be_secret() -> None:
    command = Command(["cc", "a.c"], "/src", {"TOKEN": "hidden"}, stdin=b"hidden", timeout=6)
    shown = "Command(['cc', 'a.c'], cwd='/src', extra_env=<TOKEN>, stdin=<6 bytes>, timeout=6)"
    assert repr(command) == shown
    assert str(command) == "['cc', 'a.c']"


BAD: list[dict[str, Any]] = [
    {"argv": []},
    {"argv": ""},
    {"argv": 5},
    {"argv": {"command": ["true"]}},
    {"argv": [5]},
    {"argv": ["a\0b"]},
    {"cwd": ""},
    {"cwd": 5},
    {"env": ["A=1"]},
    {"extra_env": {"A": 1}},
    {"extra_env": {"": "1"}},
    {"env": {"A": "\0"}},
    {"env": {b"A": bytearray(b"x")}},
    {"env": {b"A=": b"x"}},
    {"extra_env": {b"A": b"x", "A": "x"}},
    {"executable": ""},
    {"executable": ["sh"]},
    {"executable": b"a\0b"},
    {"stdin": "text"},
    {"stdin": True},
    {"stdout": STDOUT},
    {"stdout": "file"},
    {"stderr": -4},
    {"limits": {"cpu_time": 1}},
    {"timeout": "1"},
    {"timeout": -1},
    {"grace": True},
    {"grace": None},
    {"max_output": -1},
    {"max_output": 1.5},
    {"max_output": 1, "stdout": None, "stderr": None},
    {"on_overflow": "kill"},
    {"on_overflow": "stop", "max_output": 1},
    {"pass_fds": 5},
    {"pass_fds": [1]},
    {"pass_fds": range(3, 40)},
    {"pty": (1,)},
    {"pty": (0, 1)},
    {"pty": True, "stdin": b""},
    {"pty": True, "stdout": None},
    {"pty": True, "stderr": None},
    {"pty": True, "stderr": DEVNULL},
    {"pty": True, "stdin": DEVNULL},
    {"pty": True, "stdout": DEVNULL},
    {"pty": True, "pty_stderr": "apart"},
    {"pty": True, "pty_stderr": "pipe", "stderr": STDOUT},
    {"pty_stderr": "pipe"},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_it_is_checked_when_it_is_made(bad: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        Command(**{"argv": "true", **bad})
    with pytest.raises(SpecError):
        Command("true").replace(**bad)


def test_its_options_are_those_of_command_options() -> None:
    """The one in _spec/command.py is for type checkers; the one at run time is made of Command."""
    tree = ast.parse(Path(inspect.getfile(command_of)).read_text())
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    (said,) = (node for node in classes if node.name == "CommandOptions")
    (made,) = (node for node in classes if node.name == "Command")
    hints = {
        s.target.id: ast.unparse(s.annotation) for s in said.body if isinstance(s, ast.AnnAssign)
    }
    (init,) = (n for n in made.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    arguments = [*init.args.args[2:], *init.args.kwonlyargs]
    assert hints == {a.arg: ast.unparse(a.annotation) for a in arguments if a.annotation}
    assert list(sandboxlib.CommandOptions.__annotations__) == list(hints)
    assert Command._fields == ("argv", *hints)


# ---- calls -------------------------------------------------------------------------------------


CALLS = sorted(each_call(Sandbox("/")))


@pytest.mark.parametrize("call", CALLS)
def test_an_unknown_keyword_gets_the_same_error_everywhere(call: str) -> None:
    run = each_call(Sandbox("/"))[call]
    name = call.partition(" of ")[0]
    for wrong, hint in (
        ("timout", "did you mean timeout?"),
        ("extra_environment", "did you mean extra_env?"),
        ("std_out", "did you mean stdout?"),
        ("cpu_time", "Limits has it: limits=Limits(cpu_time=...)"),
    ):
        with pytest.raises(SpecTypeError) as raised:
            run(["true"], **{wrong: 1})
        assert str(raised.value) == f"{name} has no keyword argument {wrong}: {hint}"
    with pytest.raises(SpecTypeError, match=f"{name} has no keyword argument xyzzy: it has cwd, "):
        run(["true"], xyzzy=1)


def test_values_say_the_same_of_an_unknown_keyword() -> None:
    for make, name in ((Command, "Command"), (Command("true").replace, "Command.replace")):
        with pytest.raises(SpecTypeError) as raised:
            make("true", timout=1) if make is Command else make(timout=1)  # type: ignore[arg-type]
        text = f"{name} has no keyword argument timout: did you mean timeout?"
        assert str(raised.value) == text
    with pytest.raises(SpecTypeError) as raised:
        Sandbox("/", netwrok="isolated")  # type: ignore[arg-type]
    text = "Sandbox has no keyword argument netwrok: did you mean network?"
    assert str(raised.value) == text


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("network", "Sandbox has it: Sandbox(root, network=...)"),
        ("user", "Sandbox has it: Sandbox(root, user=...)"),
        ("seccomp", "Policy has it: Sandbox(root, policy=Policy(seccomp=...))"),
        ("shell", "a line of a shell is ['sh', '-c', LINE]"),
        ("text", "outputs are bytes: result.stdout.decode()"),
        ("capture_output", "outputs are captured unless stdout= or stderr= says otherwise"),
    ],
)
def test_a_command_says_who_has_an_option_of_a_sandbox(wrong: str, hint: str) -> None:
    for make, name in ((Command, "Command"), (Sandbox("/").run, "run")):
        with pytest.raises(SpecTypeError) as raised:
            make(["true"], **{wrong: 1})  # type: ignore[arg-type]
        assert str(raised.value) == f"{name} has no keyword argument {wrong}: {hint}"


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("timeout", "Command has it: Command(argv, timeout=...)"),
        ("cwd", "Command has it: Command(argv, cwd=...)"),
        ("memory", "Limits has it: Sandbox(limits=Limits(memory=...))"),
    ],
)
def test_a_sandbox_says_who_has_an_option_that_it_has_not(wrong: str, hint: str) -> None:
    with pytest.raises(SpecTypeError) as raised:
        Sandbox("/", **{wrong: 1})  # type: ignore[arg-type]
    assert str(raised.value) == f"Sandbox has no keyword argument {wrong}: {hint}"


@pytest.mark.parametrize("call", CALLS)
def test_a_command_has_no_option_beside_it(call: str) -> None:
    run = each_call(Sandbox("/"))[call]
    name = call.partition(" of ")[0]
    with pytest.raises(SpecTypeError) as raised:
        run(Command("true"), cwd="/", stdin=b"")
    text = "a Command has its options itself: command.replace(cwd=..., stdin=...)"
    assert str(raised.value) == f"{name}: {text}, or an argv in its place"


def test_start_refuses_what_takes_somebody_who_reads() -> None:
    box = Sandbox("/")
    options: list[dict[str, Any]] = [
        {"timeout": 1},
        {"grace": 1},
        {"max_output": 1},
        {"stdout": Lines(print)},
        {"stderr": Tee(2)},
    ]
    for words in options:
        for name, call in (("start", box.start), ("start_async", box.start_async)):
            with pytest.raises(SpecTypeError, match=f"{name} takes n"):
                call("true", **words)  # type: ignore[operator]


def test_the_form_of_0_3_takes_no_command() -> None:
    for words in ({}, {"filesystem_root": "/"}):
        with pytest.raises(SpecTypeError, match=r"takes no Command: run_sandbox\(root, command\)"):
            sandboxlib.run_sandbox(Command("true"), **words)  # type: ignore[call-overload]


def test_a_sandbox_is_a_runner() -> None:
    assert isinstance(Sandbox("/"), Runner)
    assert not isinstance(Command("true"), Runner)


# ---- results -----------------------------------------------------------------------------------


def test_ok_is_exit_status_0_in_time() -> None:
    assert Result(0, b"", b"").ok
    assert not Result(1, b"", b"").ok
    assert not Result(0, b"", b"", timed_out=True).ok


def test_stdout_of_a_result_raises_if_it_was_not_captured() -> None:
    assert Result(0, b"a", b"b").stdout == b"a"
    assert Result(0, b"a", b"b").stderr == b"b"
    for name in ("stdout", "stderr"):
        with pytest.raises(ValueError, match=f"{name} was not captured"):
            getattr(Result(0, None, None), name)


# ---- types -------------------------------------------------------------------------------------


def public_things() -> Iterator[tuple[str, Any]]:
    """Every public function, class, method and property, by its name."""
    from sandboxlib.load import appc, oci

    modules = [sandboxlib, appc, oci]
    modules += [
        v for n in sandboxlib.__all__ if isinstance(v := getattr(sandboxlib, n), ModuleType)
    ]
    for module in modules:
        names = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
        for name in names:
            thing = getattr(module, name)
            where = f"{module.__name__}.{name}"
            if inspect.isclass(thing) and thing.__module__.startswith("sandboxlib"):
                yield where, thing
                for member, value in vars(thing).items():
                    if member.startswith("_") and member != "__init__":
                        continue
                    inner = value.fget if isinstance(value, property) else value
                    inner = getattr(inner, "__func__", inner)
                    if isinstance(inner, FunctionType):
                        yield f"{where}.{member}", inner
            elif callable(thing) and getattr(thing, "__module__", "").startswith("sandboxlib"):
                yield where, thing
    yield "sandboxlib.map", sandboxlib.map


def test_the_hints_of_everything_public_can_be_had() -> None:
    failed, count = [], 0
    for name, thing in public_things():
        count += 1
        try:
            typing.get_type_hints(thing)
        except Exception as error:
            failed.append(f"{name}: {error!r}")
    assert not failed
    assert count > 150
    hints = typing.get_type_hints(Sandbox.run)
    assert hints["return"] is Result
    assert hints["check"] is bool
    wanted = typing.get_type_hints(sandboxlib.CommandOptions)
    options = getattr(hints["options"], "__args__", (hints["options"],))[0]
    assert typing.get_type_hints(options) == wanted
    assert set(wanted) == set(Command._fields) - {"argv"}


def test_the_hints_are_there_whoever_is_asked_first() -> None:
    """typing is not imported with sandboxlib, and the modules of the hints not in a fixed order."""
    for first in ("Sandbox.start", "Command.__init__", "run_sandbox", "Process.wait"):
        script = "import sys, sandboxlib\nsandboxlib.Sandbox\n"
        script += "assert 'typing' not in sys.modules\nimport typing\n"
        script += f"typing.get_type_hints(sandboxlib.{first})\nsandboxlib.Runner"
        subprocess.run([sys.executable, "-S", "-c", script], check=True, env=environment())


def environment() -> dict[str, str]:
    """Without site, which may import typing, the packages are found by PYTHONPATH."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
