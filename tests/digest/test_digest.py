# SPDX-License-Identifier: Apache-2.0
"""Command.digest: what changes it and what does not, and that nothing of the caller does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lib.machine import python
from lib.reapi import stubs

from sandboxlib import (
    CAPTURE,
    DEVNULL,
    STDOUT,
    Command,
    File,
    Layers,
    Limits,
    Lines,
    Mount,
    Overlay,
    Policy,
    Sandbox,
    SpecError,
    SpecTypeError,
    Store,
    Tee,
    Tree,
    User,
    _reapi,
)
from sandboxlib._digest import action, salt
from sandboxlib._digest.hermetic import NAMES
from sandboxlib.errors import SpecChoiceError


class Known(Layers):
    """A layer whose content has a digest."""

    def __init__(self, content: str) -> None:
        self._content = content

    def _lowers(self, owners: object) -> Any:
        raise AssertionError("a digest unpacks nothing")

    def _key(self, store: object = None) -> str:
        return self._content

    def __repr__(self) -> str:
        return f"Known({self._content!r})"


LAYER = Known("sha256:one")
BOX = Sandbox(Overlay(LAYER), user=1000, umask=0o022, hostname="sandbox")
COMMAND = Command(["cc", "-c", "a.c"])
KEY = COMMAND.digest(BOX)
PINNED = "9e4ee35e8e9348e314995bc2c225ee53ed47c03e0bc90738be06919255d306d1/666"

#: Other values of each field, which are in the digest (True) or not (False). A new field fails the
#: test of this table until it is here.
SANDBOX: dict[str, list[tuple[Any, bool]]] = {
    "root": [
        (Overlay(Known("sha256:two")), True),
        (Overlay(LAYER, LAYER), True),
        (Overlay(), True),
        (LAYER, False),  # short for an Overlay of it
        ("/srv/root", True),
    ],
    "network": [("undefined", True)],
    "mounts": [("undefined", True)],
    "processes": [("undefined", True)],
    "ipc": [("undefined", True)],
    "hostname": [("other", True), (None, True)],
    "extra_mounts": [
        ([Mount.tmpfs("/var/tmp")], True),
        ([Mount.proc("/var/proc")], True),
        ([Mount.bind("/srv", "/srv")], True),
    ],
    "filesystem_writable_paths": [("none", True), (["/out"], True), ("all", False)],
    "tmp": [("root", True)],
    "devices": [("root", True), (["/dev/kvm"], True)],
    "resolv_conf": [(True, True)],
    "policy": [
        (Policy(capabilities="none"), True),
        (Policy(capabilities=["chown"]), True),
        (Policy(no_new_privs=False), True),
        (Policy(seccomp="builds"), True),
        (Policy(seccomp={"defaultAction": "SCMP_ACT_ALLOW"}), True),
        (Policy(nesting=True), True),
        (Policy(), False),
    ],
    "init": [(False, True)],
    "user": [
        ("root", True),
        ("ranges", True),
        ("caller", True),
        (1001, True),
        (User(1000, 1001), True),
        (User(1000, groups=[27]), True),
        (User(1000, groups=[]), True),
        (User(1000, ranges=True), True),
        (User(1000), False),
    ],
    "umask": [(0o077, True), (0, True), (None, True)],
    "limits": [(Limits(memory="200M"), False), (Limits(cpuset=1), False)],
    "deterministic": [(True, True)],
    "personality": [("linux32", True)],
    "store": [(Store("/nowhere/store"), False)],
}
#: What another value needs, or contradicts.
BESIDE: dict[tuple[str, Any], dict[str, Any]] = {
    ("resolv_conf", True): {"network": "undefined"},
    ("init", False): {"user": "root"},
    ("processes", "undefined"): {"user": "root"},
    ("mounts", "undefined"): {
        "root": "/",
        "tmp": "root",
        "filesystem_writable_paths": "all",
    },
}
COMMANDS: dict[str, list[tuple[Any, bool]]] = {
    "argv": [
        (["cc", "-c", "b.c"], True),
        (["cc", "-c a.c"], True),
        ([b"cc", b"-c", Path("a.c")], False),
        (["cc", "-c", b"\xff"], True),
    ],
    "cwd": [("/src", True), ("/", False)],
    "extra_env": [({"A": "1"}, True), ({"A": ""}, True), ({}, False)],
    "env": [({}, True), ({"A": "1"}, True), (None, False)],
    "executable": [("/bin/cc", True)],
    "stdin": [(b"input", True), (b"", True), (DEVNULL, False), (0, True)],
    "stdout": [(DEVNULL, False), (1, False), (print, False), (Lines(print), False)],
    "stderr": [(DEVNULL, False), (2, False), (Tee(2), False), (CAPTURE, False), (STDOUT, True)],
    "limits": [(Limits(memory="200M"), False)],
    "timeout": [(60, True), (60.5, True), (0, True), (None, False)],
    "grace": [(1.0, False)],
    "max_output": [("1M", False)],
    "on_overflow": [("kill", False)],
    "pass_fds": [([3], True)],
    "pty": [(True, True)],
    "pty_stderr": [("pipe", True)],
    "inputs": [
        ({"a": b"1"}, True),
        ({"a": Tree({})}, True),
        ({}, False),
    ],
    "outputs": [(["out"], True), (["/out/*.o"], True), ([], False)],
    "changes": [("keep", False), ("on-failure", False)],
}
BESIDE_COMMAND: dict[str, dict[str, Any]] = {
    "on_overflow": {"max_output": "1M"},
    "pty_stderr": {"pty": True},
}
OVERLAY: dict[str, list[tuple[Any, bool]]] = {
    "layers": [([Known("sha256:two")], True), ([LAYER, "/srv/tools"], True)],
    "upper": [("/var/tmp/upper", True)],
    "busy": [("refuse", False)],
    "storage": [("disk", False), (Path("/var/tmp"), False)],
}


def cases(table: dict[str, list[tuple[Any, bool]]]) -> list[Any]:
    return [
        pytest.param(
            name,
            value,
            is_in,
            id=f"{name}-{getattr(value, '__name__', type(value).__name__)}-{number}",
        )
        for name, values in table.items()
        for number, (value, is_in) in enumerate(values)
    ]


def test_each_field_is_in_these_tables() -> None:
    for table, kind in ((SANDBOX, Sandbox), (COMMANDS, Command), (OVERLAY, Overlay)):
        assert set(table) == set(kind._fields)
        out = {name for name, values in table.items() if not any(is_in for _, is_in in values)}
        assert out == set(salt.OUT[kind.__name__])


@pytest.mark.parametrize(("name", "value", "is_in"), cases(SANDBOX))
def test_a_field_of_the_sandbox(name: str, value: Any, is_in: bool) -> None:
    beside = BESIDE.get((name, value), {}) if isinstance(value, (str, bool)) else {}
    box = BOX.replace(**beside)
    other = box.replace(**{name: value})
    assert (COMMAND.digest(other, NAMES) != COMMAND.digest(box, NAMES)) is is_in


@pytest.mark.parametrize(("name", "value", "is_in"), cases(COMMANDS))
def test_a_field_of_the_command(name: str, value: Any, is_in: bool) -> None:
    command = COMMAND.replace(**BESIDE_COMMAND.get(name, {}))
    other: Command = command.replace(**{name: value})
    assert (other.digest(BOX, NAMES) != command.digest(BOX, NAMES)) is is_in


@pytest.mark.parametrize(("name", "value", "is_in"), cases(OVERLAY))
def test_a_field_of_the_overlay(name: str, value: Any, is_in: bool) -> None:
    other = BOX.replace(root=Overlay(LAYER).replace(**{name: value}))
    assert (COMMAND.digest(other, NAMES) != KEY) is is_in


MOUNTS: dict[str, list[tuple[Mount, Mount]]] = {
    "target": [(Mount.tmpfs("/a"), Mount.tmpfs("/b"))],
    "source": [(Mount.bind("/srv", "/a"), Mount.bind("/usr", "/a"))],
    "type": [(Mount.proc("/a"), Mount.dev("/a"))],
    "read_only": [(Mount.bind("/srv", "/a"), Mount.bind("/srv", "/a", read_only=True))],
    "recursive": [(Mount.bind("/srv", "/a"), Mount.bind("/srv", "/a", recursive=False))],
    "size": [(Mount.tmpfs("/a"), Mount.tmpfs("/a", size="1M"))],
    "mode": [(Mount.tmpfs("/a"), Mount.tmpfs("/a", mode=0o700))],
    "content": [
        (Mount.file(b"1", "/a"), Mount.file(b"2", "/a")),
        (Mount.file(b"1", "/a"), Mount.file(File(b"1", executable=True), "/a")),
    ],
    "to": [(Mount.symlink("/a", "/b"), Mount.symlink("/c", "/b"))],
}


@pytest.mark.parametrize("name", Mount._fields)
def test_each_field_of_a_mount_is_in_the_digest(name: str) -> None:
    for each in MOUNTS[name]:
        one, other = (
            COMMAND.digest(BOX.replace(extra_mounts=[mount]), ["extra_mounts"]) for mount in each
        )
        assert one != other


def test_the_content_of_a_mount_is_what_it_is_wherever_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    contents = [b"1", File(b"1"), File(tmp_path / "file")]
    boxes = [BOX.replace(extra_mounts=[Mount.file(each, "/a")]) for each in contents]
    assert len({COMMAND.digest(box) for box in boxes}) == 1
    key = COMMAND.digest(boxes[-1])
    (tmp_path / "file").write_bytes(b"2")
    assert COMMAND.digest(boxes[-1]) != key


def test_the_order_of_mounts_and_layers_is_in_the_digest() -> None:
    mounts = [Mount.tmpfs("/a"), Mount.tmpfs("/a/b")]
    layers = [LAYER, Known("sha256:two")]
    boxes = [
        *(BOX.replace(extra_mounts=each) for each in (mounts, mounts[::-1])),
        *(BOX.replace(root=Overlay(*each)) for each in (layers, layers[::-1])),
    ]
    assert len({COMMAND.digest(box) for box in boxes}) == 4


def test_the_order_of_variables_and_names_is_not() -> None:
    one = Command(["cc"], extra_env={"A": "1", "B": "2"})
    other = Command(["cc"], extra_env={"B": "2", "A": "1"})
    assert one.digest(BOX) == other.digest(BOX)
    boxes = [
        BOX.replace(policy=Policy(capabilities=names), filesystem_writable_paths=paths)
        for names, paths in ((["chown", "kill"], ["/a", "/b"]), (["kill", "chown"], ["/b", "/a"]))
    ]
    assert COMMAND.digest(boxes[0]) == COMMAND.digest(boxes[1])


def test_nothing_is_not_the_same_as_zero() -> None:
    boxes = [BOX.replace(umask=umask) for umask in (0, None)]
    assert len({COMMAND.digest(box, ["umask"]) for box in boxes}) == 2
    assert len({COMMAND.replace(timeout=timeout).digest(BOX) for timeout in (0, None)}) == 2


def test_where_a_variable_was_given_is_not_in_the_digest() -> None:
    path = sandboxlib_path()
    assert Command(["cc"], env={"PATH": path}).digest(BOX) == Command(["cc"]).digest(BOX)
    one = Command(["cc"], env={"A": "1"}, extra_env={"B": "2"})
    assert one.digest(BOX) == Command(["cc"], env={"A": "1", "B": "2"}).digest(BOX)


def sandboxlib_path() -> str:
    from sandboxlib import BASE_ENVIRONMENT

    return BASE_ENVIRONMENT["PATH"]


def test_deterministic_sets_what_else_would_have_to_be_given() -> None:
    box = Sandbox(Overlay(LAYER), deterministic=True)
    assert not box.not_hermetic(COMMAND)
    explicit = box.replace(hostname="sandbox", umask=0o022, user="root")
    assert COMMAND.digest(box) == COMMAND.digest(explicit)
    assert COMMAND.digest(box) != COMMAND.digest(box.replace(umask=0o077))


def test_the_clock_of_a_deterministic_sandbox_is_in_the_digest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    box = Sandbox(Overlay(LAYER), deterministic=True)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    key = COMMAND.digest(box)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "315532800")
    assert COMMAND.digest(box) == key
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert COMMAND.digest(box) != key


# ---- inputs and outputs ----------------------------------------------------------------------


def key(inputs: Any = None, cwd: str | None = "/src", **options: Any) -> str:
    return Command(["cc"], cwd, inputs=inputs or {}, **options).digest(BOX)


def test_names_contents_and_executable_bits_of_inputs_are_in_the_digest() -> None:
    several = [
        {},
        {"a": b"1"},
        {"a": b"2"},
        {"b": b"1"},
        {"a": b"1", "b": b"1"},
        {"b/a": b"1"},
        {"a": File(b"1", executable=True)},
        {"/a": b"1"},
        {"a": b""},
    ]
    assert len({key(inputs) for inputs in several}) == len(several)


def test_what_the_content_of_an_input_is_given_as_is_not(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "link").symlink_to("one")
    (tmp_path / "two").write_bytes(b"1")
    (tmp_path / "two").chmod(0o600)
    os.utime(tmp_path / "two", (1, 1))
    same = [b"1", File(b"1"), *(tmp_path / name for name in ("one", "link", "two"))]
    assert {key({"a": each}) for each in same} == {key({"a": b"1"})}


def test_a_tree_is_its_content_wherever_it_comes_from(tmp_path: Path) -> None:
    for top in (tmp_path / "one", tmp_path / "two"):
        (top / "sub").mkdir(parents=True)
        (top / "sub" / "run").write_bytes(b"#!")
        (top / "sub" / "run").chmod(0o755)
        (top / "a.h").write_bytes(b"1")
        (top / "link").symlink_to("a.h")
    (tmp_path / "two" / "a.h").chmod(0o640)
    keys = {key({"include": Tree(tmp_path / name)}) for name in ("one", "two")}
    assert len(keys) == 1
    for change in (
        lambda top: (top / "a.h").write_bytes(b"2"),
        lambda top: (top / "sub" / "run").chmod(0o644),
        lambda top: (top / "sub" / "empty").mkdir(),
        lambda top: (top / "link").unlink(),
        lambda top: (top / "link").symlink_to("a.c"),
        lambda top: (top / os.fsdecode(b"\xff")).write_bytes(b""),
    ):
        change(tmp_path / "two")
        other = key({"include": Tree(tmp_path / "two")})
        assert other not in keys
        keys.add(other)


def test_the_time_of_inputs_is_in_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = BOX.replace(root=Overlay(Tree({"a": b"1"})))

    def keys() -> list[str]:
        staged = [key({"a": b"1"}), key(outputs=["a"]), COMMAND.digest(tree)]
        return [COMMAND.digest(BOX), *staged]

    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    before = keys()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "315532800")
    assert keys() == before
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert [one == other for one, other in zip(keys(), before, strict=True)] == [True, *[False] * 3]


def test_a_file_is_not_a_tree_that_hides_its_neighbours() -> None:
    assert key({"include/a.h": b"1"}) != key({"include": Tree({"a.h": b"1"})})


def test_longer_paths_go_over_trees() -> None:
    tree = Tree({"a.h": b"1", "b.h": b"2", "sub/c.h": b"4"})
    before = key({"include": tree})
    over = {"include/a.h": b"3", "include/sub/d.h": b"5", "include/sub/e.h": b"6"}
    same = {"a.h": b"3", "b.h": b"2", "sub/c.h": b"4", "sub/d.h": b"5", "sub/e.h": b"6"}
    assert key({"include": tree, **over}) == key({"include": Tree(same)})
    assert key({"include": tree}) == before  # the tree is what it was
    assert key({"include": tree, **over}) == key({"include": Tree(same)})


def test_a_path_that_is_relative_to_the_cwd_is_the_absolute_one() -> None:
    assert key({"a": b"1"}) == key({"/src/a": b"1"}) != key({"/a": b"1"})
    assert key(outputs=["a"]) == key(outputs=["/src/a"]) != key(outputs=["/a"])
    assert key(outputs=["a", "b"]) == key(outputs=["b", "a", "b"]) != key(outputs=["a"])
    assert key(cwd=None, outputs=["a"]) == key(cwd="/", outputs=["/a"])


def test_outputs_are_relative_to_the_cwd_as_the_api_has_them() -> None:
    pb = stubs()
    command = Command(["cc"], "/src", outputs=["b", "/src/x/*.o", "/srcs/a", "/out"])
    message = pb.Command.FromString(action.command_message(command, BOX))
    assert list(message.output_paths) == ["/out", "/srcs/a", "b", "x/*.o"]


# ---- nothing of the caller -------------------------------------------------------------------

PROGRAM = """
import sys
sys.path[:0] = {path!r}
from test_digest import KEY
print(KEY)
"""


def key_of_another(*prefix: str, cwd: str = "/", **variables: str) -> str:
    """KEY, as another process finds it."""
    names = ("PYTHONPATH", "PATH", "LD_PRELOAD", "ASAN_OPTIONS")
    settings = {name: os.environ[name] for name in names if name in os.environ}
    program = PROGRAM.format(path=[str(Path(__file__).parent), *sys.path])
    command = [*prefix, *python(), "-B", "-c", program]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**settings, **variables}, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONHASHSEED": "1"},
        {"PYTHONHASHSEED": "2", "HOME": "/nowhere", "TMPDIR": "/var/tmp", "USER": "somebody"},
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "TZ": "Asia/Tokyo", "PATH": "/bin"},
        {"SANDBOXLIB_BACKEND": "bubblewrap", "XDG_CACHE_HOME": "/nowhere"},
    ],
    ids=lambda variables: ",".join(variables),
)
def test_the_environment_of_the_caller_is_not_in_the_digest(variables: dict[str, str]) -> None:
    assert key_of_another(**variables) == KEY


def test_the_directory_and_the_umask_of_the_caller_are_not(tmp_path: Path) -> None:
    shell = ("sh", "-c", 'umask 077; exec "$@"', "sh")
    assert key_of_another(*shell, cwd=str(tmp_path)) == KEY


def test_the_ids_and_the_hostname_of_the_caller_are_not() -> None:
    script = 'hostname another 2>/dev/null || echo another >/proc/sys/kernel/hostname; exec "$@"'
    unshare = ("unshare", "--user", "--map-root-user", "--uts", "sh", "-c", script, "sh")
    if subprocess.run([*unshare[:4], "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace")
    name = subprocess.run([*unshare, "hostname"], capture_output=True, text=True, check=True)
    assert name.stdout == "another\n"
    assert key_of_another(*unshare) == KEY


# ---- the Action ------------------------------------------------------------------------------


def test_the_digest_is_that_of_an_action_that_protobuf_reads() -> None:
    pb = stubs()
    command = COMMAND.replace(cwd="/src", timeout=1.5)
    encoded = action.action_message(command, BOX)
    message = pb.Action.FromString(encoded)
    assert message.SerializeToString(deterministic=True) == encoded
    assert command.digest(BOX) == _reapi.digest_of(encoded)
    assert (message.timeout.seconds, message.timeout.nanos) == (1, 500_000_000)
    assert not message.HasField("platform")  # a scheduler would look for workers that have it
    number, text = message.salt.removeprefix(b"sandboxlib ").split(b" ", 1)
    assert int(number) == salt.SCHEMA
    described = json.loads(text)
    assert described["sandbox"]["network"] == "isolated"
    assert described["machine"] == os.uname().machine
    assert described["layers"] == ["sha256:one"]
    assert described["sandbox"]["user"] == {"gid": 1000, "ranges": False, "uid": 1000}
    assert json.dumps(described, sort_keys=True, separators=(",", ":")).encode() == text


def test_the_digest_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes it also raises SCHEMA: a cache of an earlier version then misses, and never
    has the result of something else.
    """
    box = BOX.replace(personality="linux32")
    command = COMMAND.replace(cwd="/src", timeout=1.5, stdin=b"input", extra_env={"A": "1"})
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="x86_64"))
    assert (salt.SCHEMA, command.digest(box)) == (2, PINNED)


# ---- what has no digest ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("root", {"root": "/srv/root"}),
        ("layers", {"root": Overlay("/srv/root")}),
        ("upper", {"root": Overlay(LAYER, upper="/srv/upper")}),
        ("network", {"network": "undefined"}),
        ("processes", {"processes": "undefined", "user": "root"}),
        ("ipc", {"ipc": "undefined"}),
        ("hostname", {"hostname": None}),
        ("extra_mounts", {"extra_mounts": [Mount.bind("/srv", "/srv")]}),
        ("devices", {"devices": ["/dev/kvm"]}),
        ("devices", {"devices": "root"}),
        ("resolv_conf", {"network": "undefined", "resolv_conf": True}),
        ("user", {"user": "caller"}),
        ("user", {"user": None}),
        ("umask", {"umask": None}),
    ],
    ids=str,
)
def test_what_of_a_sandbox_has_no_digest(name: str, changes: dict[str, Any]) -> None:
    box = BOX.replace(**changes)
    reasons = box.not_hermetic(COMMAND)
    assert name in reasons
    assert len(reasons) == (2 if name == "resolv_conf" else 1)
    with pytest.raises(SpecError, match=f"has no digest:(.|\n)*{name}: "):
        COMMAND.digest(box)
    assert not box.not_hermetic(COMMAND, assume=reasons)
    assert COMMAND.digest(box, assume=reasons) != KEY


@pytest.mark.parametrize(
    ("name", "value"), [("stdin", 0), ("pass_fds", [5]), ("pty", True)], ids=str
)
def test_what_of_a_command_has_no_digest(name: str, value: Any) -> None:
    command: Command = COMMAND.replace(**{name: value})
    assert list(BOX.not_hermetic(command)) == [name]
    with pytest.raises(SpecError, match=f"\n  {name}: "):
        command.digest(BOX)
    assert command.digest(BOX, assume=[name]) != KEY


def test_everything_without_a_digest_is_named_at_once() -> None:
    box = Sandbox("/", network="undefined", extra_mounts=[Mount.bind("/srv", "/srv")])
    names = {"root", "network", "extra_mounts", "user", "umask", "hostname", "cwd", "stdin"}
    command = Command(["make"], stdin=0)
    assert set(box.not_hermetic(command)) == names
    with pytest.raises(SpecError) as caught:
        command.digest(box)
    assert all(f"\n  {name}: " in str(caught.value) for name in names)
    assert set(box.not_hermetic(["make"], stdin=0, assume=["root", "cwd"])) == names - {
        "root",
        "cwd",
    }


def test_the_directory_of_the_caller_has_no_digest() -> None:
    assert "cwd" in Sandbox("/").not_hermetic(["make"])
    assert "cwd" not in Sandbox("/").not_hermetic(["make"], cwd="/src")
    assert "cwd" not in BOX.not_hermetic(["make"])


def test_several_binds_are_named_each() -> None:
    mounts = [Mount.bind("/srv", "/a"), Mount.bind("/usr", "/b"), Mount.tmpfs("/c")]
    text = BOX.replace(extra_mounts=mounts).not_hermetic(COMMAND)["extra_mounts"]
    assert "/srv" in text
    assert "/usr" in text
    assert "/c" not in text


def test_names_that_there_are_not_cannot_be_assumed() -> None:
    with pytest.raises(SpecChoiceError, match="assume has 'rot'"):
        COMMAND.digest(BOX, assume=["rot"])
    with pytest.raises(SpecTypeError, match=r"\['root'\]"):
        BOX.not_hermetic(COMMAND, assume="root")


def test_a_digest_takes_a_sandbox() -> None:
    with pytest.raises(SpecTypeError, match="no Sandbox: '/'"):
        COMMAND.digest("/")  # type: ignore[arg-type]


def test_a_file_among_the_mounts_counts_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    digests = []
    for content, mode in ((b"a", 0o644), (b"b", 0o644), (b"a", 0o755), (b"a", 0o644)):
        path.write_bytes(content)
        path.chmod(mode)
        box = Sandbox(Overlay(), extra_mounts=[Mount.file(File(path), "/f")], deterministic=True)
        digests.append(Command(["/x"]).digest(box))
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]
