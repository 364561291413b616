# SPDX-License-Identifier: Apache-2.0
"""Sandbox.reproduce() and run-sandbox --reproduce: a shell where a command failed."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lib import image_maker
from lib.machine import python, require
from lib.roots import find_busybox
from lib.terminal import User as Person

from sandboxlib import (
    CAPTURE,
    Command,
    File,
    Image,
    Layer,
    Limits,
    Lines,
    Mount,
    Overlay,
    Policy,
    Sandbox,
    SetupError,
    SpecError,
    SpecTypeError,
    Store,
    Tee,
    Tree,
    User,
)
from sandboxlib._reproduce import reading

CLASSES = reading.Classes(Sandbox, Store, Layer, Image)


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def box(shared_rootfs: Path) -> Sandbox:
    box = Sandbox(shared_rootfs)
    reasons = box.lacks()
    require(not reasons, f"no sandbox runs here: {reasons}")
    return box


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "failed.json"


def call(file: Path, *words: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    argv = [*python(), "-m", "sandboxlib", "run", "--reproduce", str(file), *map(str, words)]
    return subprocess.run(argv, input=stdin, capture_output=True, check=False)


def read(file: Path) -> tuple[Sandbox, Command]:
    record = reading.read(str(file), CLASSES)
    return record.box, record.command


# ---- the shell -------------------------------------------------------------------------------


@pytest.fixture
def sit_down() -> Iterator[Any]:
    people: list[Person] = []

    def make(*words: object) -> Person:
        people.append(Person(*words))
        return people[-1]

    yield make
    for person in people:
        person.close()


def test_a_shell_on_a_terminal_where_the_command_ran(
    box: Sandbox, file: Path, sit_down: Any
) -> None:
    box = box.replace(hostname="there", extra_mounts=[Mount.dev("/dev")])
    command = Command(["sh", "-c", "exit 3"], "/tmp", extra_env={"NAME": "its value"}, timeout=9)
    box.reproduce(command, file, result=box.run(command))
    person = sit_down("--reproduce", file)
    said = person.see(b"\r\n")
    assert b"['/bin/sh'] where ['sh', '-c', 'exit 3'] ran, and it ended with 3" in said
    person.type(b"echo $PWD $NAME $TERM; hostname; stty size; test -t 0 && echo terminal\r")
    person.see(b"/tmp its value vt100\r\nthere\r\n30 100\r\nterminal\r\n")
    person.type(b"sh -c 'echo u\"\"p; exec sleep 1000'\r")
    person.see(b"up\r\n")
    person.type(b"\x03")
    person.type(b"exit 5\r")
    assert person.leave() == 5


def test_a_shell_that_reads_from_a_pipe(box: Sandbox, file: Path) -> None:
    box.reproduce(Command(["true"], "/tmp"), file)
    done = call(file, stdin=b"pwd; echo err >&2; exit 4")
    assert (done.returncode, done.stdout, done.stderr) == (4, b"/tmp\n", b"err\n")


def test_a_command_in_place_of_the_shell(box: Sandbox, file: Path) -> None:
    box.reproduce(Command(["false"], executable="/bin/false"), file)
    for words in (["echo", "-n", "--run"], ["--", "echo", "-n", "--run"]):
        done = call(file, *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"--run", b"")


def test_the_command_itself(box: Sandbox, file: Path) -> None:
    script = "echo $0; cat; echo err >&2; exit 7"
    command = Command(["ash", "-c", script], executable="/bin/sh", stdin=b"its input\xff")
    box.reproduce(command, file)
    done = call(file, "--run", stdin=b"another input")
    assert (done.returncode, done.stdout) == (7, b"ash\nits input\xff")
    assert done.stderr == b"err\n"


def test_the_command_itself_with_its_timeout_its_limits_and_its_terminal(
    box: Sandbox, file: Path
) -> None:
    box.reproduce(Command(["sleep", "60"], timeout=0.1), file)
    assert call(file, "--run").returncode == 124
    box.reproduce(Command(["yes"], max_output=10, on_overflow="kill"), file)
    done = call(file, "--run")
    assert (done.returncode, done.stdout) == (137, b"y\n" * 5)
    limits = Limits(open_files=17)
    box.reproduce(Command(["sh", "-c", "ulimit -n"], limits=limits, pty=True), file)
    assert call(file, "--run").stdout == b"17\r\n"
    assert call(file, stdin=b"ulimit -n").stdout == b"17\n"


def test_the_clock_of_inputs_is_that_of_the_caller_who_wrote_the_file(
    box: Sandbox, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = box.replace(deterministic=True)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    box.reproduce(Command(["sh", "-c", "echo $SOURCE_DATE_EPOCH"]), file)
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    done = call(file, "--run")
    assert (done.stdout, done.stderr) == (b"86400\n", b"")


def test_words_that_do_not_go_together(box: Sandbox, file: Path) -> None:
    box.reproduce(Command(["true"]), file)
    done = call(file, "--run", "echo")
    assert done.returncode == 125
    assert b"--run runs the command of FILE, and takes no COMMAND" in done.stderr
    done = call(file, "-e", "no-such-executor")
    assert done.returncode == 125
    assert b"no-such-executor" in done.stderr


def test_a_root_that_is_gone_is_told(file: Path) -> None:
    Sandbox("/nowhere/root").reproduce(Command(["true"]), file)
    done = call(file)
    assert done.returncode == 125
    assert b"/nowhere/root" in done.stderr


# ---- the file --------------------------------------------------------------------------------


def test_what_is_read_is_what_was_written(file: Path, tmp_path: Path) -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}
    box = Sandbox(
        Overlay("/srv/a", os.fsdecode(b"/srv/\xff"), storage=Path("/var/tmp")),
        network="undefined",
        resolv_conf=True,
        hostname="box",
        extra_mounts=[Mount.bind("a", "/a", read_only=True), Mount.tmpfs("/b", size="1M")],
        filesystem_writable_paths=["/out"],
        devices=["/dev/kvm"],
        policy=Policy(capabilities=["chown"], seccomp=profile, no_new_privs=False),
        user=User(1000, 1001, [27], ranges=True),
        umask=0o077,
        limits=Limits(memory="200M", cpus=1.5, cpuset=[0, 1]),
        deterministic=True,
        personality="linux32",
        store=Store(tmp_path / "store"),
    )
    command = Command(
        ["cc", b"\xff", "\u00e9"],
        "/src",
        {"@": "1", "A": os.fsdecode(b"\xff")},
        env={"B": "2"},
        executable="/bin/cc",
        stdin=bytes(range(256)),
        stdout=None,
        limits=Limits(nice=5),
        timeout=1.5,
        grace=2,
        max_output="1M",
        on_overflow="kill",
    )
    box.reproduce(command, file)
    assert read(file) == (box, command)
    for plain in (Sandbox("/srv"), Sandbox(Overlay()), Sandbox("/srv", user=1000)):
        plain.reproduce(Command(["true"], "/", env={"A": "1"}, pty=(30, 100)), file)
        assert read(file) == (plain, Command(["true"], "/", env={"A": "1"}, pty=(30, 100)))


def test_the_directory_of_the_caller_is_written(file: Path) -> None:
    Sandbox("/").reproduce(Command(["true"]), file)
    assert read(file)[1].cwd == os.getcwd()
    Sandbox("/srv").reproduce(Command(["true"]), file)
    assert read(file)[1].cwd is None


def test_only_its_owner_can_read_the_file(file: Path) -> None:
    before = os.umask(0)
    try:
        Sandbox("/").reproduce(Command(["true"]), file)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_file_takes_the_place_of_an_earlier_one_or_of_nothing(file: Path) -> None:
    file.write_text("an earlier one")
    file.chmod(0o644)
    file.with_name("hard link").hardlink_to(file)
    Sandbox("/").reproduce(Command(["true"]), file)
    assert json.loads(file.read_text())["version"] == 1
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.with_name("hard link").read_text() == "an earlier one"
    for wrong in (file.parent / "missing" / "file", file.parent):
        with pytest.raises(SetupError, match="reproduce"):
            Sandbox("/").reproduce(Command(["true"]), wrong)
    assert sorted(each.name for each in file.parent.glob("*")) == ["failed.json", "hard link"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stdin", 0),
        ("stdout", print),
        ("stdout", Lines(print)),
        ("stderr", Tee(2)),
        ("stderr", 2),
        ("pass_fds", [5]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_means_something_in_one_process_alone_is_refused(
    file: Path, name: str, value: Any
) -> None:
    with pytest.raises(SpecError, match=f"^{name} of the command is a file"):
        Sandbox("/").reproduce(Command(["true"], **{name: value}), file)
    assert not file.exists()


def test_a_command_and_a_result_are_what_they_are(file: Path) -> None:
    with pytest.raises(SpecTypeError, match="no Command"):
        Sandbox("/").reproduce(["true"], file)  # type: ignore[arg-type]
    with pytest.raises(SpecTypeError, match="no Result"):
        Sandbox("/").reproduce(Command(["true"]), file, result=(1, b"", b""))  # type: ignore[arg-type]


# ---- inputs ----------------------------------------------------------------------------------


@pytest.fixture
def with_inputs(tmp_path: Path) -> tuple[Sandbox, Command]:
    """Files and Trees wherever there may be any."""
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "run").write_bytes(b"#!/bin/sh\n")
    (source / "sub" / "run").chmod(0o755)
    (source / "link").symlink_to("sub/run")
    (source / os.fsdecode(b"\xff")).write_bytes(b"3")
    (tmp_path / "one").write_bytes(b"1")
    mounts = [
        Mount.file(b"4", "/etc/a"),
        Mount.file(File(tmp_path / "one", executable=True), "/etc/b"),
    ]
    inputs = {"a": tmp_path / "one", "/run": File(b"2", executable=True), "tree": Tree(source)}
    box = Sandbox(Overlay(Tree({"base": b"5"})), deterministic=True, extra_mounts=mounts)
    return box, Command(["true"], "/src", inputs=inputs, outputs=["out/*", "/x"])


def remove_sources(tmp_path: Path) -> None:
    (tmp_path / "one").unlink()
    shutil.rmtree(tmp_path / "source")


def test_inputs_come_from_the_store(
    with_inputs: tuple[Sandbox, Command], file: Path, tmp_path: Path
) -> None:
    box, command = with_inputs
    key = command.digest(box)
    box.reproduce(command, file)
    remove_sources(tmp_path)
    record = reading.read(str(file), CLASSES)
    assert record.command.digest(record.box) == key
    assert record.command.outputs == command.outputs
    assert b"#!/bin/sh" not in file.read_bytes()


def test_inputs_come_from_the_store_of_the_sandbox_or_from_one_that_is_named(
    with_inputs: tuple[Sandbox, Command], file: Path, tmp_path: Path
) -> None:
    box, command = with_inputs
    box = box.replace(store=Store(tmp_path / "its own"))
    key = command.digest(box)
    box.reproduce(command, file)
    remove_sources(tmp_path)
    assert not (tmp_path / "cache").exists()
    record = reading.read(str(file), CLASSES)
    assert record.command.digest(record.box) == key
    del record
    (tmp_path / "its own").rename(tmp_path / "moved")
    with pytest.raises(SetupError, match="find the inputs"):
        reading.read(str(file), CLASSES)
    record = reading.read(str(file), CLASSES, str(tmp_path / "moved"))
    assert record.command.digest(record.box) == key
    assert record.box.store == Store(tmp_path / "moved")


def test_inputs_that_the_store_has_no_more_are_named_by_their_digest(
    with_inputs: tuple[Sandbox, Command], file: Path
) -> None:
    box, command = with_inputs
    box.reproduce(command, file)
    digest = json.loads(file.read_text())["contents"]
    record = reading.read(str(file), CLASSES)
    Store().prune()
    assert record.command.digest(record.box)  # what is read holds a lock on them
    del record
    Store().prune()
    done = call(file)
    assert (done.returncode, done.stdout) == (125, b"")
    assert f"find the inputs {digest} in the store {Store().directory}".encode() in done.stderr


def test_inputs_that_changed_in_the_store_are_refused(
    with_inputs: tuple[Sandbox, Command], file: Path, tmp_path: Path
) -> None:
    box, command = with_inputs
    box.reproduce(command, file)
    for path in tmp_path.glob("cache/sandboxlib/inputs/*/tree/0"):
        path.write_bytes(b"other")
    with pytest.raises(SetupError, match=r"ESTALE, step store.*somebody changed them"):
        read(file)


@pytest.mark.parametrize(
    ("kind", "number", "message"),
    [
        ("File", "99", "no '99'"),
        ("File", "../0", "no '../0'"),
        ("File", "", "no ''"),
        ("File", 0, "no 0"),
        ("File", ["0"], "no "),
        ("File", "4", "is no file"),
        ("Tree", "0", "is no directory"),
    ],
)
def test_inputs_that_there_are_not_are_refused(
    with_inputs: tuple[Sandbox, Command], file: Path, kind: str, number: Any, message: str
) -> None:
    box, command = with_inputs
    box.reproduce(command, file)
    content = json.loads(file.read_text())
    assert content["command"]["inputs"]["tree"] == {"@": "Tree", "number": "2"}
    number = "2" if number == "4" else number
    content["command"]["inputs"]["a"] = {"@": kind, "number": number}
    file.write_text(json.dumps(content))
    with pytest.raises(SpecError, match=message):
        read(file)


def test_an_input_that_is_gone_is_told_and_no_file_is_written(
    with_inputs: tuple[Sandbox, Command], file: Path, tmp_path: Path
) -> None:
    (tmp_path / "one").unlink()
    with pytest.raises(SetupError, match="one"):
        with_inputs[0].reproduce(with_inputs[1], file)
    assert not file.exists()


# ---- layers and changes ----------------------------------------------------------------------


@pytest.fixture
def layered(shared_rootfs: Path) -> Sandbox:
    box = Sandbox(Overlay(shared_rootfs))
    reasons = box.lacks()
    require(not reasons, f"no overlay is mounted here: {reasons}")
    return box


SCRIPT = """
echo left > /left; rm /bin/tar; mv /etc /moved; mkdir -m 700 /etc; echo x > /etc/new
exit 3
"""
LOOK = b"cat /left /etc/new; ls /etc /moved; test -e /bin/tar || echo no tar; stat -c %a /etc"
SEEN = b"left\nx\n/etc:\nnew\n\n/moved:\nno tar\n700\n"


def test_a_shell_over_what_the_command_left(layered: Sandbox, file: Path, sit_down: Any) -> None:
    command = Command(["sh", "-c", SCRIPT], changes="on-failure")
    result = layered.run(command)
    with result.changes:
        layered.reproduce(command, file, result=result)
    done = call(file, stdin=LOOK)
    assert (done.stdout, done.stderr) == (SEEN, b"")
    assert call(file, stdin=b"echo more > /left").returncode == 0
    assert call(file, "cat", "/left").stdout == b"left\n"  # each shell begins there
    assert call(file, "--run").returncode == 3
    person = sit_down("--reproduce", file)
    person.type(b"cat /left; exit 4\r")
    person.see(b"left\r\n")
    assert person.leave() == 4


def test_a_shell_where_the_command_began_if_no_changes_were_kept(
    layered: Sandbox, file: Path
) -> None:
    command = Command(["sh", "-c", SCRIPT], changes="drop")
    layered.reproduce(command, file, result=layered.run(command))
    assert call(file, "test", "-e", "/left").returncode == 1
    kept = layered.run(command.replace(changes="keep"))
    with kept.changes:
        layered.reproduce(command, file)
    assert call(file, "test", "-e", "/left").returncode == 1


def test_changes_over_inputs(layered: Sandbox, file: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_bytes(b"1\n")
    (tmp_path / "tree" / "b").write_bytes(b"2\n")
    inputs = {"tree": Tree(tmp_path / "tree"), "/file": b"3\n", "/same": b"4\n"}
    script = "echo 5 > tree/a; rm tree/b; echo 6 >> /file; mkdir made; test -d /out; exit $?0"
    command = Command(
        *(["sh", "-c", script], "/src"), inputs=inputs, outputs=["/out/*"], changes="keep"
    )
    result = layered.run(command)
    with result.changes:
        layered.reproduce(command, file, result=result)
    shutil.rmtree(tmp_path / "tree")
    look = b"pwd; ls . tree; cat tree/a /file /same; ls -d /out"
    done = call(file, stdin=look)
    assert done.stdout == b"/src\n.:\nmade\ntree\n\ntree:\na\n5\n3\n6\n4\n/out\n", done.stderr
    assert call(file, "--run").returncode == 0
    layered.reproduce(command.replace(inputs={**inputs, "tree": Tree({"c": b"7"})}), file)
    assert call(file, stdin=b"ls tree; cat /file").stdout == b"c\n3\n"


def test_layers_come_from_the_store(layered: Sandbox, file: Path, shared_rootfs: Path) -> None:
    layer = Layer.from_directory(shared_rootfs)
    box = layered.replace(root=Overlay(layer))
    command = Command(["sh", "-c", "echo 1 > /left; exit 3"], changes="keep")
    result = box.run(command)
    with result.changes:
        box.reproduce(command, file, result=result)
    del box, result
    gc.collect()  # the Sandbox holds a lock of its layers
    assert json.loads(file.read_text())["sandbox"]["root"]["layers"][0]["digest"] == layer.digest
    assert call(file, "cat", "/left").stdout == b"1\n"
    changes = json.loads(file.read_text())["changes"]["digest"]
    assert Store().prune()
    done = call(file, "cat", "/left")
    assert done.returncode == 125
    assert layer.digest.encode() in done.stderr
    Layer.from_directory(shared_rootfs)
    done = call(file, "cat", "/left")
    assert done.returncode == 125
    assert changes.encode() in done.stderr
    assert call(file, "--run").returncode == 3


def image_of(path: Path, content: bytes) -> Image:
    """An image with a shell."""
    busybox = find_busybox()
    require(busybox, "there is no static busybox (apt: busybox-static)")
    program = image_maker.file("bin/busybox", Path(str(busybox)).read_bytes(), mode=0o755)
    links = b"".join(image_maker.symlink(f"bin/{name}", "busybox") for name in ("sh", "cat"))
    places = b"".join(image_maker.directory(name) for name in ("bin", "work", "proc", "dev", "tmp"))
    layer = places + program + links + image_maker.file("work/a", content) + image_maker.END
    settings = {"Env": ["PATH=/bin", "NAME=its value"], "WorkingDir": "/work"}
    return Image(image_maker.Layout(layer, **settings).tar(path))


def test_an_image_with_what_it_says_of_commands(file: Path, tmp_path: Path) -> None:
    box = Sandbox(image_of(tmp_path / "image.tar", b"1\n"))
    reasons = box.lacks()
    require(not reasons, f"no image runs here: {reasons}")
    command = Command(["sh", "-c", "echo 2 > left; exit 3"], changes="keep")
    result = box.run(command)
    with result.changes:
        box.reproduce(command, file, result=result)
    done = call(file, stdin=b"cat a left; echo $NAME")
    assert (done.stdout, done.stderr) == (b"1\n2\nits value\n", b"")
    image_of(tmp_path / "image.tar", b"2\n")
    done = call(file, "cat", "a")
    assert done.returncode == 125
    assert b"image.tar, which has other layers than sha256:" in done.stderr
    (tmp_path / "image.tar").unlink()
    done = call(file, "cat", "a")
    assert done.returncode == 125
    assert b"image.tar: No such file" in done.stderr


# ---- a file of somebody else's ---------------------------------------------------------------


@pytest.fixture
def content(file: Path) -> dict[str, Any]:
    box = Sandbox(Overlay("/srv"), policy=Policy(), user=1000, limits=Limits(pids=5))
    box.reproduce(Command(["true"], stdin=b"1", extra_env={"A": "1"}), file)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["version"], 2, "version 2, and this sandboxlib reads 1"),
        (["version"], True, "version True"),
        (["sandboxlib"], "other", "did not write this"),
        (["more"], 1, "it has the names"),
        (["command"], None, "no Sandbox or no Command"),
        (["sandbox"], {"@": "Limits"}, "what a Limits is made of"),
        (["command", "argv"], [], "the command is empty"),
        (["command", "argv"], [1], "argv"),
        (["command", "more"], 1, "what a Command is made of"),
        (["command", "timeout"], float("nan"), "timeout"),
        (["command", "timeout"], "60", "timeout"),
        (["command", "stdin"], 0, "stdin of the command is a descriptor"),
        (["command", "stdin"], {"@": "bytes", "base64": "?"}, "base64"),
        (["command", "stdin"], {"@": "bytes", "base64": 5}, "base64"),
        (["command", "stdin"], {"@": "bytes"}, "a bytes has nothing"),
        (["command", "stdin"], {"@": "bytes", "a": 1, "b": 2}, "a bytes has a, b"),
        (["command", "pass_fds"], [0], "pass_fds"),
        (["command", "pass_fds"], [7], "pass_fds of the command is a descriptor"),
        (["command", "extra_env"], {"@": "dict", "dict": 5}, "pairs"),
        (["command", "extra_env"], {"@": "dict", "dict": [["A"]]}, "pairs"),
        (["command", "extra_env"], {"A": 5}, "the value of the variable 'A'"),
        (["sandbox", "root"], {"@": "os.system"}, "there is no 'os.system'"),
        (["sandbox", "root"], {"@": ["x"]}, "there is no"),
        (["sandbox", "root"], {"@": "Command", "argv": ["x"]}, "there is no 'Command'"),
        (["sandbox", "network"], "other", "network is 'other'"),
        (["sandbox", "user", "uid"], -1, "uid is -1"),
        (["sandbox", "policy", "seccomp"], {"@": "Profile", "text": "{"}, "JSON"),
        (["sandbox", "policy", "seccomp"], {"@": "path", "path": "/etc/passwd"}, "seccomp"),
        (["sandbox", "limits", "more"], 1, "what a Limits is made of"),
        (["source_date"], "now", "source_date"),
        (["source_date"], -1, "source_date"),
        (["changes"], {"@": "Overlay", "layers": [], "upper": None}, "what an Overlay is made of"),
        (["changes"], ["x"], "its changes are no Layer"),
        (["changes"], {"@": "Layer", "digest": "x", "store": None}, "this is no digest"),
        (["sandbox", "root"], {"@": "Image", "path": "/x"}, "an Image has path"),
        (
            ["sandbox", "root"],
            {"@": "Image", "path": "/nowhere", "ref": None, "key": "x"},
            "ENOENT",
        ),
        (["contents"], "sha256:1", "contents is no digest"),
        (["contents"], f"{'a' * 64}/5", "find the inputs aaaa"),
        (["command", "inputs"], {"a": {"@": "File", "number": "0"}}, "there is no 'File'"),
        (["command", "inputs"], {"a": {"@": "Tree", "content": "/etc"}}, "there is no 'Tree'"),
    ],
    ids=str,
)
def test_a_wrong_file_is_refused(
    content: dict[str, Any], file: Path, path: list[str], value: Any, message: str
) -> None:
    at = content
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    file.write_text(json.dumps(content))
    with pytest.raises((SpecError, SetupError), match=message) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}: ") or isinstance(caught.value, SetupError)
    done = call(file)
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("box", [Sandbox("/srv"), Sandbox(Overlay("/srv", upper="/nowhere"))])
def test_changes_of_a_root_that_has_none_are_refused(file: Path, box: Sandbox) -> None:
    box.reproduce(Command(["true"], "/"), file)
    content = json.loads(file.read_text())
    content["changes"] = {"@": "Layer", "digest": f"sha256:{'a' * 64}", "store": None}
    file.write_text(json.dumps(content))
    with pytest.raises(SpecError, match="take an Overlay without an upper of its own"):
        read(file)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[]", "did not write this"),
        (b"[" * 100_000, "deep"),
        (b'{"sandboxlib": "reproduce", "sandboxlib": "reproduce"}', "a name stands twice"),
    ],
)
def test_what_is_no_such_file_is_refused(file: Path, data: bytes, message: str) -> None:
    file.write_bytes(data)
    with pytest.raises(SpecError, match=message):
        read(file)


def test_objects_that_lie_too_deep_are_refused(content: dict[str, Any], file: Path) -> None:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    content["command"]["argv"] = deep
    file.write_text(json.dumps(content))
    with pytest.raises(SpecError, match="50 objects in each other"):
        read(file)


def test_a_file_that_is_none_is_not_waited_for(file: Path) -> None:
    os.mkfifo(file)
    with pytest.raises(SpecError, match="no regular file"):
        read(file)
    with pytest.raises(SetupError, match="ENOENT, step reproduce"):
        read(file.with_name("missing"))
    with pytest.raises(SetupError, match="EISDIR"):
        read(file.parent)
    assert call(file.with_name("missing")).returncode == 125


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["@", "path", "dict", "base64", "text", "A"]), inner)
        | st.sampled_from(["Limits", "Overlay", "path", "bytes", "dict"]).map(lambda k: {"@": k})
    ),
    max_leaves=6,
)


@given(name=st.sampled_from(["command", "sandbox", "ended"]), value=ANYTHING, data=st.data())
@example(name="sandbox", value=[], data=None)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_a_file_is_refused_or_made(
    content: dict[str, Any], file: Path, name: str, value: Any, data: Any
) -> None:
    content = json.loads(json.dumps(content))
    if isinstance(content[name], dict) and data is not None:
        field = data.draw(st.sampled_from(sorted(content[name])))
        content[name][field] = value
    else:
        content[name] = value
    file.write_text(json.dumps(content))
    try:
        box, command = read(file)
    except (SpecError, SetupError):
        return
    assert isinstance(box, Sandbox)
    assert isinstance(command, Command)
    assert command.stdin is None or type(command.stdin) is bytes
    assert command.stdout is CAPTURE
