# SPDX-License-Identifier: Apache-2.0
"""buildbox-run-sandboxlib, the program, with a storage of the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from lib.fake_casd import FakeCasd
from lib.roots import make_rootfs

from sandboxlib import _reapi
from sandboxlib._buildbox import messages
from sandboxlib._inputs.snapshot import Folder, Leaf, Link
from sandboxlib._remote.stubs import re_pb

PROGRAM = [sys.executable, "-c", "from sandboxlib._buildbox.main import main; main()"]
LINUX = {"OSFamily": "linux"}
#: output_directory_format of a Command: Directory messages. The stubs here are older than that.
DIRECTORIES = _reapi._number(9, 1)


class Site:
    """A storage with a root of busybox, and what runs Actions there."""

    def __init__(self, fake: FakeCasd, root: str, tmp: Path) -> None:
        self.fake, self.root, self.tmp = fake, root, tmp

    def action(
        self,
        script: str,
        *,
        argv: Iterable[str] = (),
        directory: str = "work",
        outputs: Iterable[str] = (".",),
        platform: Mapping[str, str] = LINUX,
        root: str | None = None,
        timeout: float | None = None,
        properties: Iterable[str] = (),
        in_command: bool = False,
    ) -> bytes:
        command = re_pb.Command(
            arguments=list(argv) or ["sh", "-e", "-c", script],
            working_directory=directory,
            output_paths=list(outputs),
            output_node_properties=list(properties),
        )
        command.environment_variables.add(name="PATH", value="/bin")
        action = re_pb.Action()
        told = (command if in_command else action).platform
        for name, value in platform.items():
            told.properties.add(name=name, value=value)
        for message, digest in (
            (action.command_digest, self.fake.put(command.SerializeToString() + DIRECTORIES)),
            (action.input_root_digest, root or self.root),
        ):
            message.hash, _, size = digest.partition("/")
            message.size_bytes = int(size)
        if timeout is not None:
            action.timeout.FromNanoseconds(round(timeout * 1e9))
        encoded: bytes = action.SerializeToString()
        return encoded

    def argv(self, action: bytes, *options: str) -> list[str]:
        (self.tmp / "action").write_bytes(action)
        told = [f"--action={self.tmp}/action", f"--action-result={self.tmp}/result"]
        return [*PROGRAM, f"--remote={self.fake.url}", *told, *options]

    def result(self) -> Any:
        return re_pb.ActionResult.FromString((self.tmp / "result").read_bytes())

    def run(self, script: str, *options: str, **more: Any) -> Any:
        """The ActionResult of a script, which has to run."""
        argv = self.argv(self.action(script, **more), *options)
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr.decode()
        self.out, self.err = done.stdout, done.stderr
        return self.result()

    def refused(self, script: str, *options: str, **more: Any) -> str:
        """What is said of a script that cannot run."""
        argv = self.argv(self.action(script, **more), *options)
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 1
        assert not (self.tmp / "result").exists()
        return done.stderr.decode()

    def stdout(self, result: Any) -> str:
        return self.blob(result.stdout_digest).decode()

    def blob(self, digest: Any) -> bytes:
        return self.fake.blobs[f"{digest.hash}/{digest.size_bytes}"]

    def tree(self, result: Any, number: int = 0) -> dict[str, object]:
        """The paths of an output directory: contents, targets of links, None for directories."""
        return dict(self._walk(self.fake.folder(root_digest(result, number)), ""))

    def _walk(self, folder: Folder, path: str) -> Iterator[tuple[str, object]]:
        for name, node in folder.items():
            at = f"{path}{os.fsdecode(name)}"
            if isinstance(node, Folder):
                yield at, None
                yield from self._walk(node, f"{at}/")
            elif isinstance(node, Link):
                yield at, (node.target.decode(),)
            else:
                assert isinstance(node, Leaf)
                yield at, self.fake.blobs[node.digest].decode(errors="replace")


def root_digest(result: Any, number: int = 0) -> str:
    """The root_directory_digest of an output directory, which the stubs do not know."""
    encoded = result.output_directories[number].SerializeToString()
    return messages.digest_of(messages.fields(encoded), 5, "an output directory")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeCasd, str]]:
    directory = tmp_path_factory.mktemp("casd")
    rootfs = make_rootfs(directory / "rootfs")
    for name in os.listdir(rootfs / "bin"):
        if name not in ("sh", "busybox") and (rootfs / "bin" / name).stat().st_nlink > 1:
            os.unlink(rootfs / "bin" / name)
            os.symlink("busybox", rootfs / "bin" / name)
    (rootfs / "work").mkdir()
    (rootfs / "out").mkdir()
    (rootfs / "work/source").write_text("text\n")
    (rootfs / "etc/sub").mkdir()
    (rootfs / "etc/sub/file").write_text("kept\n")
    with FakeCasd(directory) as fake:
        yield fake, fake.put_tree(rootfs)


@pytest.fixture
def site(storage: tuple[FakeCasd, str], tmp_path: Path) -> Site:
    return Site(*storage, tmp_path)


def marked(site: Site) -> str:
    """The root with BuildStream's marks: read-only, but for /work and /out."""
    top = re_pb.Directory.FromString(site.fake.blobs[site.root])
    top.node_properties.properties.add(name="SubtreeReadOnly", value="true")
    for node in top.directories:
        if node.name in ("work", "out"):
            below = re_pb.Directory.FromString(
                site.fake.blobs[f"{node.digest.hash}/{node.digest.size_bytes}"]
            )
            below.node_properties.properties.add(name="SubtreeReadOnly", value="false")
            node.digest.hash, _, size = site.fake.put(below.SerializeToString()).partition("/")
            node.digest.size_bytes = int(size)
    return site.fake.put(top.SerializeToString())


def test_outputs_and_streams_are_in_the_storage(site: Site) -> None:
    result = site.run("echo to out; echo to err >&2; echo new > made; mkdir d; ln -s ../made d/l")
    assert (result.exit_code, site.stdout(result)) == (0, "to out\n")
    assert site.blob(result.stderr_digest) == b"to err\n"
    expected = {"source": "text\n", "made": "new\n", "d": None, "d/l": ("../made",)}
    assert site.tree(result) == expected
    assert site.out == site.err == b""


def test_nothing_of_the_storage_changes(site: Site) -> None:
    result = site.run("echo more >> source; chmod 700 source; rm -r /etc; cat source")
    assert site.stdout(result) == "text\nmore\n"
    assert site.stdout(site.run("cat source /etc/sub/file")) == "text\nkept\n"


def test_an_output_that_is_the_whole_root_has_what_was_left_alone(site: Site) -> None:
    result = site.run("rm source; echo 1 > /etc/new; mv /etc/sub /etc/other", outputs=["../"])
    tree = site.tree(result)
    assert tree["etc/new"] == "1\n"
    assert tree["etc/other/file"] == "kept\n"
    assert "work/source" not in tree
    assert "etc/sub" not in tree
    assert tree["bin/cat"] == ("busybox",)
    unchanged = site.run("true", outputs=[".."])
    assert root_digest(unchanged) == site.root


@pytest.mark.slow
def test_files_links_and_missing_outputs(site: Site) -> None:
    outputs = ["f", "x", "l", "d/e/deep", "nothing"]
    script = "echo 1 > f; echo 2 > x; chmod +x x; ln -s f l; echo 3 > d/e/deep; mkfifo nothing"
    result = site.run(script, outputs=outputs)
    files = {
        each.path: (site.blob(each.digest), each.is_executable) for each in result.output_files
    }
    assert files == {"f": (b"1\n", False), "x": (b"2\n", True), "d/e/deep": (b"3\n", False)}
    assert [(each.path, each.target) for each in result.output_symlinks] == [("l", "f")]
    assert not result.output_directories


@pytest.mark.slow
def test_times_and_modes_are_told_if_asked_for(site: Site) -> None:
    script = "echo 1 > f; chmod 750 f; touch -d @981158400 f"
    result = site.run(script, outputs=["f"], properties=["mtime", "unix_mode"])
    told = result.output_files[0].node_properties
    assert (told.mtime.seconds, told.unix_mode.value) == (981158400, 0o750)


def test_the_root_is_read_only_where_buildstream_marks_it(site: Site) -> None:
    script = "! touch /etc/x; ! touch /x; touch a /out/b /tmp/c; echo done"
    result = site.run(script, root=marked(site), outputs=[".", "../out"])
    assert site.stdout(result) == "done\n"
    assert site.tree(result) == {"source": "text\n", "a": ""}
    assert site.tree(result, 1) == {"b": ""}


def test_marks_are_no_part_of_outputs(site: Site) -> None:
    result = site.run("true", root=marked(site), outputs=[".", "../out"])
    assert site.tree(result) == {"source": "text\n"}
    for number in (0, 1):
        content = site.fake.blobs[root_digest(result, number)]
        assert not re_pb.Directory.FromString(content).HasField("node_properties")


def test_the_working_directory_and_parents_of_outputs_are_made(site: Site) -> None:
    result = site.run("pwd; echo 1 > a/b/c", directory="not/there", outputs=["a/b/c"])
    assert site.stdout(result) == "/not/there\n"
    assert site.blob(result.output_files[0].digest) == b"1\n"


@pytest.mark.parametrize(
    ("script", "status"), [("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_the_exit_status_of_the_command_is_in_the_result(
    site: Site, script: str, status: int
) -> None:
    assert site.run(script).exit_code == status


def test_a_program_that_is_not_there(site: Site) -> None:
    result = site.run("", argv=["/no/such/program"])
    assert result.exit_code == 127
    assert b"/no/such/program" in site.blob(result.stderr_digest)
    assert site.run("", argv=["/work/source"]).exit_code == 126


@pytest.mark.slow
def test_the_environment_is_that_of_the_command(site: Site) -> None:
    lines = site.stdout(site.run("env")).split()
    assert {line.partition("=")[0] for line in lines} <= {"PATH", "PWD", "SHLVL", "OLDPWD"}


def test_output_goes_straight_on_without_capture(site: Site) -> None:
    result = site.run("echo out; echo err >&2", "--no-logs-capture")
    assert (site.out, site.err) == (b"out\n", b"err\n")
    assert not result.HasField("stdout_digest")


@pytest.mark.slow
def test_output_goes_to_files(site: Site, tmp_path: Path) -> None:
    told = (f"--stdout-file={tmp_path}/o", f"--stderr-file={tmp_path}/e")
    result = site.run("echo out; echo err >&2", *told)
    assert (tmp_path / "o").read_text() == "out\n"
    assert (tmp_path / "e").read_text() == "err\n"
    assert site.stdout(result) == "out\n"


def test_bind_mounts(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the host\n")
    (tmp_path / "dir").mkdir()
    told = (f"--bind-mount={tmp_path}/file:/etc/f", f"--bind-mount={tmp_path}/dir:/new/dir")
    result = site.run("cat /etc/f; echo 1 > /new/dir/x", *told)
    assert site.stdout(result) == "of the host\n"
    assert (tmp_path / "dir/x").read_text() == "1\n"
    told = (f"--ro-bind-mount={tmp_path}/dir:/new/dir",)
    assert site.run("! touch /new/dir/y && cat /new/dir/x", *told).exit_code == 0


def test_the_metadata_has_times_and_usage(site: Site) -> None:
    metadata = site.run("true").execution_metadata
    names = ["worker_start", "input_fetch_start", "input_fetch_completed", "execution_start"]
    names += ["execution_completed", "output_upload_start", "output_upload_completed"]
    stamps = [getattr(metadata, f"{name}_timestamp").ToNanoseconds() for name in names]
    assert stamps == sorted(stamps)
    assert abs(stamps[0] / 1e9 - time.time()) < 300
    assert metadata.worker == os.uname().nodename
    from google.protobuf.struct_pb2 import Struct

    usage = Struct()
    assert metadata.auxiliary_metadata[0].Unpack(usage)
    assert usage["wall"] > 0
    assert usage["peak_memory"] > 0


@pytest.mark.slow
def test_the_platform_may_be_that_of_the_command(site: Site) -> None:
    refused = site.refused("true", platform={"OSFamily": "haiku"}, in_command=True)
    assert "OSFamily='haiku'" in refused


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="takes a machine with 32 bit")
def test_isa_of_32_bit(site: Site) -> None:
    result = site.run("uname -m", platform={"ISA": "x86-32"})
    assert site.stdout(result) == "i686\n"


@pytest.mark.slow
def test_the_network(site: Site) -> None:
    script = "grep -c : /proc/net/dev"
    assert site.stdout(site.run(script, platform=LINUX)) == "1\n"
    mine = sum(":" in line for line in Path("/proc/net/dev").read_text().splitlines())
    found = site.run(script, platform={"network": "on"})
    if found.exit_code == 0:
        assert int(site.stdout(found)) == mine


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="other ids than its own take root")
def test_ids(site: Site) -> None:
    found = site.run(
        "id -u; id -g; whoami || true", platform={"unixUID": "1000", "unixGID": "1001"}
    )
    assert site.stdout(found).split()[:2] == ["1000", "1001"]


def test_the_command_is_uid_0_unless_told_otherwise(site: Site) -> None:
    assert site.stdout(site.run("id -u; id -g")) == "0\n0\n"
    own = {"unixUID": str(os.geteuid()), "unixGID": str(os.getegid())}
    assert site.stdout(site.run("id -u", platform=own)) == f"{os.geteuid()}\n"


@pytest.mark.parametrize(
    "platform",
    [{"ISA": "pdp11"}, {"unheard": "of"}, {"unixUID": "me"}, {"sandboxlib": "1"}],
    ids=lambda platform: next(iter(platform)),
)
def test_a_property_that_cannot_be_kept_is_refused(site: Site, platform: dict[str, str]) -> None:
    assert next(iter(platform)) in site.refused("true", platform=platform)


def test_a_missing_input_root_is_named(site: Site) -> None:
    digest = f"{'1' * 64}/7"
    assert digest in site.refused("true", root=digest)


@pytest.mark.parametrize("name", [b"..", b"a/b", b"", b"."], ids=["up", "slash", "empty", "dot"])
def test_a_hostile_name_in_the_input_root_is_refused(site: Site, name: bytes) -> None:
    node = _reapi._message(
        1, _reapi._text(1, name) + _reapi._message(2, _reapi._digest("0" * 64 + "/1"))
    )
    assert "the name" in site.refused("true", root=site.fake.put(node))


def test_an_output_outside_of_the_root_is_refused(site: Site) -> None:
    assert "outside" in site.refused("true", outputs=["../../etc"])
    assert "relative" in site.refused("true", outputs=["/etc"])


def test_the_timeout_of_the_action(site: Site) -> None:
    argv = site.argv(site.action("echo begun; sleep 60", timeout=1))
    done = subprocess.run(argv, capture_output=True, check=False, timeout=50)
    assert done.returncode == 128 + signal.SIGALRM
    assert b"1 s" in done.stderr
    result = site.result()
    assert (result.exit_code, site.stdout(result)) == (137, "begun\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command(site: Site, number: int, tmp_path: Path) -> None:
    told = (f"--bind-mount={tmp_path}:/mark", "--no-logs-capture")
    script = "while :; do echo x >> /mark/alive; sleep 0.1; done"
    process = subprocess.Popen(site.argv(site.action(script), *told), start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "alive").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    finally:
        process.kill()
        process.wait()
    size = (tmp_path / "alive").stat().st_size
    time.sleep(0.4)
    assert (tmp_path / "alive").stat().st_size == size
    assert site.result().exit_code == 137


@pytest.mark.slow
def test_a_large_output_goes_up_in_pieces(site: Site) -> None:
    result = site.run("dd if=/dev/zero of=big bs=1M count=9 2>/dev/null", outputs=["big"])
    assert site.blob(result.output_files[0].digest) == bytes(9 << 20)


@pytest.mark.slow
def test_changes_on_disk(site: Site, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    result = site.run("echo 1 > f", f"--workspace-path={tmp_path}/disk", outputs=["f"])
    assert site.blob(result.output_files[0].digest) == b"1\n"
    assert os.listdir(tmp_path / "disk") == []


@pytest.mark.slow
@pytest.mark.parametrize("way", ["no LocalCAS", "--disable-localcas"])
def test_a_storage_that_stages_nothing(
    way: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "plain").mkdir()
    with FakeCasd(tmp_path / "plain", stages=way.startswith("--")) as fake:
        fake.blobs = site.fake.blobs
        other = Site(fake, site.root, tmp_path)
        result = other.run("cat source; echo 1 > f", *([way] if way.startswith("--") else []))
        assert result.exit_code == 0
        assert other.tree(result) == {"source": "text\n", "f": "1\n"}


def test_capabilities() -> None:
    done = subprocess.run([*PROGRAM, "--capabilities"], capture_output=True, check=True)
    lines = done.stdout.decode().splitlines()
    assert {"no-logs-capture", "bind-mount", "platform:OSFamily=linux"} <= set(lines)
    assert {"platform:unixUID", "platform:unixGID"} <= set(lines)


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--validate-parameters"], 1, "--remote is missing"),
        (["--validate-parameters", "--unheard"], 1, "--unheard"),
        (["--nested-instance=x"], 1, "--nested-instance is not supported"),
        (["--ra-remote=x"], 1, "--ra-remote is not supported"),
        (["--digest-function=MD5", *"--remote=u --action=a --action-result=r".split()], 1, "MD5"),
        ("--validate-parameters --remote=u --action=a --action-result=r".split(), 0, "right"),
        ("--remote unix:/nothing --action /nothing --action-result /r".split(), 1, "/nothing"),
        (["--help"], 0, "--bind-mount"),
        (["--version"], 0, "buildbox-run-sandboxlib"),
    ],
    ids=lambda value: None,
)
def test_the_command_line(options: list[str], status: int, says: str) -> None:
    done = subprocess.run([*PROGRAM, *options], capture_output=True, check=False)
    assert done.returncode == status
    assert says in (done.stdout + done.stderr).decode()
