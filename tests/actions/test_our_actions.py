# SPDX-License-Identifier: Apache-2.0
"""Actions of ours: a Command in a Sandbox, made on one machine, and executed on another."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sandboxlib import (
    STDOUT,
    Command,
    File,
    Layer,
    Limits,
    Mount,
    Overlay,
    Policy,
    Sandbox,
    Store,
    Tree,
    User,
    _reapi,
)
from sandboxlib._digest import action, salt
from sandboxlib._remote.trees import contents_of, messages_of


def send(
    place: Any, command: Command, box: Sandbox, more: Mapping[str, object] | None = None
) -> str:
    """Puts the Action of a Command into the place's blobs, as a client does. Returns its digest."""
    root = action.input_root(command, box)
    trees = [each for each in box.root.layers if isinstance(each, Tree)]  # type: ignore[union-attr]
    for folder in (root, *(each._snapshot()[0] for each in trees)):
        for message in messages_of(folder).values():
            place.blobs.put(message)
        for source in contents_of(folder).values():
            place.blobs.put(source if isinstance(source, bytes) else Path(source).read_bytes())
    for source in salt.blobs(command, box).values():
        place.blobs.put(source if isinstance(source, bytes) else Path(source).read_bytes())
    platform = _reapi.platform([(b"sandboxlib", b"1")])
    made = place.blobs.put(action.command_message(command, box))
    text = salt.salt_of(command, box, more)
    timeout = command.timeout
    return str(place.blobs.put(_reapi.action(made, messages_digest(root), timeout, text, platform)))


def messages_digest(folder: Any) -> str:
    from sandboxlib._inputs.snapshot import encoded

    return encoded(folder)


def tools(place: Any, **more: bytes) -> Tree:
    content = place.bin["busybox"][0]
    names = "sh cat id env stat ls uname mkdir ln".split()
    entries = {f"bin/{name}": File(content, executable=True) for name in names}
    return Tree({**entries, "etc/site": b"site", "tmp/x": b"", "dev/x": b"", "proc/x": b"", **more})


def script(text: str, *args: Any, **options: Any) -> Command:
    return Command(["/bin/sh", "-c", text], *args, extra_env={"PATH": "/bin"}, **options)


def options(**more: Any) -> Any:
    return {"user": "root", "umask": 0o022, "hostname": "h", **more}


def test_a_command_runs_as_it_runs_at_home(place: Any, tmp_path: Path) -> None:
    box = Sandbox(Overlay(tools(place)), store=Store(tmp_path / "home"), **options())
    command = script(
        "cat; cat a.txt sub/t /etc/site; ls /src/sub; uname -n; echo 1 > /out/a; echo 2 > b;"
        " mkdir -p /out/d/e; ln -s a /out/l; echo err >&2",
        "/src",
        stdin=b"in ",
        stderr=STDOUT,
        inputs={"a.txt": b"a ", "/src/sub": Tree({"t": b"t ", "u": b""}), "/src/sub/v": b""},
        outputs=["/out/*", "b"],
    )
    here = box.run(command)
    assert here.ok
    outcome = place.executor.execute(send(place, command, box))
    assert (outcome.code, outcome.message) == ("OK", "")
    result = outcome.result
    assert result.stdout_raw == here.stdout == b"in a t sitet\nu\nv\nh\nerr\n"
    files = {each.path for each in result.output_files}
    assert files == {"/out/a", "b"}
    assert place.file(outcome, "b") == here.outputs["/src/b"].read_bytes()
    assert [each.path for each in result.output_directories] == ["/out/d"]
    assert [each.path for each in result.output_symlinks] == ["/out/l"]
    assert place.tree(outcome, "/out/d") == {"e": None}


def test_a_missing_output_is_no_failure_and_is_not_cached(place: Any) -> None:
    box = Sandbox(Overlay(tools(place)), **options())
    outcome = place.executor.execute(send(place, script("true", outputs=["/none"]), box))
    assert (outcome.code, outcome.may_be_cached) == ("OK", False)


def test_the_sandbox_is_that_of_the_client(place: Any) -> None:
    box = Sandbox(
        Overlay(tools(place)),
        **options(
            user=User(1234, 1235),
            policy=Policy(capabilities="none"),
            deterministic=True,
            extra_mounts=[Mount.file(b"more", "/etc/more")],
        ),
    )
    outcome = place.executor.execute(send(place, script("id -u; id -g; cat /etc/more; umask"), box))
    assert outcome.result.stdout_raw == b"1234\n1235\nmore0022\n", outcome


def test_layers_come_as_tars_and_are_unpacked_once(place: Any, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("etc/layer")
        info.size, info.mode = 5, 0o600
        tar.addfile(info, io.BytesIO(b"layer"))
    (tmp_path / "layer.tar").write_bytes(buffer.getvalue())
    home = Store(tmp_path / "home")
    layer = Layer.from_tar(tmp_path / "layer.tar", home)
    place.blobs.put(buffer.getvalue())
    box = Sandbox(Overlay(tools(place), Layer(layer.digest)), store=home, **options())
    command = script("cat /etc/layer /etc/site; stat -c %a /etc/layer")
    sizes = {"sizes": {layer.digest: len(buffer.getvalue())}}
    digest = send(place, command, box, sizes)
    outcome = place.executor.execute(digest)
    assert outcome.result.stdout_raw == b"layersite600\n"
    del place.blobs[f"{layer.digest[7:]}/{len(buffer.getvalue())}"]
    assert place.executor.execute(digest).result.stdout_raw == b"layersite600\n"


def test_a_layer_with_another_content_is_refused(place: Any, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    (tmp_path / "layer.tar").write_bytes(buffer.getvalue())
    layer = Layer.from_tar(tmp_path / "layer.tar", Store(tmp_path / "home"))
    box = Sandbox(Overlay(Layer(layer.digest)), store=Store(tmp_path / "home"), **options())
    place.blobs[f"{layer.digest[7:]}/{len(buffer.getvalue())}"] = buffer.getvalue()[:-1] + b"!"
    sizes = {"sizes": {layer.digest: len(buffer.getvalue())}}
    outcome = place.executor.execute(send(place, script("true"), box, sizes))
    assert outcome.code == "INVALID_ARGUMENT"
    outcome = place.executor.execute(send(place, script("true"), box, {"sizes": {}}))
    assert outcome.code == "INVALID_ARGUMENT"
    assert "size" in outcome.message


def test_limits_of_the_client_hold_and_those_of_the_site_go_over_them(
    make_place: Callable[..., Any],
) -> None:
    place = make_place(options={"limits": Limits(open_files=40)})
    box = Sandbox(Overlay(tools(place)), **options())
    more = {"limits": {"open_files": 50, "core": 0}}
    outcome = place.executor.execute(send(place, script("ulimit -n; ulimit -c"), box, more))
    assert outcome.result.stdout_raw == b"40\n0\n"


@pytest.mark.parametrize(
    "more", [{"network": "undefined"}, {"policy": Policy(capabilities="all")}], ids=str
)
def test_what_the_site_does_not_give_is_refused(place: Any, more: Any) -> None:
    box = Sandbox(Overlay(tools(place)), **options(**more))
    digest = send(place, script("true"), box)
    outcome = place.executor.execute(digest)
    assert outcome.code == "FAILED_PRECONDITION"
    assert next(iter(more)) in outcome.message


def test_an_action_of_another_version_or_machine_is_refused(place: Any) -> None:
    box = Sandbox(Overlay(tools(place)), **options())
    digest = send(place, script("true"), box)
    from sandboxlib._remote.stubs import re_pb

    for old, new in ((b"sandboxlib 2", b"sandboxlib 9"), (b'"machine":"', b'"machine":"vax')):
        message = re_pb.Action.FromString(place.blobs[digest])
        message.salt = message.salt.replace(old, new)
        outcome = place.executor.execute(place.blobs.put(message.SerializeToString()))
        assert outcome.code == "FAILED_PRECONDITION", outcome


@pytest.mark.parametrize("cwd", ["/no/where", "/etc/site"])
def test_a_directory_that_is_none_is_the_fault_of_the_action(
    place: Any, tmp_path: Path, cwd: str
) -> None:
    box = Sandbox(Overlay(tools(place)), store=Store(tmp_path / "home"), **options())
    outcome = place.executor.execute(send(place, script("true", cwd), box))
    assert outcome.code == "INVALID_ARGUMENT", outcome.message


def test_mount_points_that_cannot_be_are_the_fault_of_the_action(
    place: Any, tmp_path: Path
) -> None:
    for mount in (Mount.tmpfs("/etc/site"), Mount.tmpfs("/etc/site/x")):
        box = Sandbox(
            Overlay(tools(place)),
            store=Store(tmp_path / "home"),
            extra_mounts=[mount],
            **options(),
        )
        outcome = place.executor.execute(send(place, script("true"), box))
        assert outcome.code == "INVALID_ARGUMENT", outcome.message


def test_an_output_of_ours_whose_name_no_message_can_have_is_refused(
    place: Any, tmp_path: Path
) -> None:
    box = Sandbox(Overlay(tools(place)), store=Store(tmp_path / "home"), **options())
    made = script(r"mkdir /d; : > /d/$(printf '\377')", outputs=["/d"])
    outcome = place.executor.execute(send(place, made, box))
    assert outcome.code == "FAILED_PRECONDITION"
    assert "not UTF-8" in outcome.message
