# SPDX-License-Identifier: Apache-2.0
"""BuildStream, as it is installed beside the servers of the tests, with one runner or the other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from lib.machine import require


def installed() -> Path:
    """The environment that has bst; skips the test without one."""
    found = os.environ.get("SANDBOXLIB_CLUSTER", "")
    require(found and os.path.exists(f"{found}/bin/bst"), "$SANDBOXLIB_CLUSTER has no bst")
    return Path(found)


def buildbox() -> Path:
    """The directory of casd, of its FUSE, and of the runner that is bundled with BuildStream."""
    found = list(installed().glob("lib/python3*/site-packages/buildstream/subprojects/buildbox"))
    require(found, "the buildstream in $SANDBOXLIB_CLUSTER has no buildbox")
    return found[0]


def our_runner(directory: Path) -> Path:
    """A directory with our runner under the name that BuildStream looks for."""
    directory.mkdir()
    program = directory / "buildbox-run"
    code = "from sandboxlib._buildbox.main import main; main()"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$@\"\n")
    program.chmod(0o755)
    return directory


class Builder:
    """bst in a project, with caches of its own.

    project: directory. runner: the directory of a buildbox-run. home: directory, for the caches.
    server: the URL of a server of remote execution, which executes all commands; "": the runner
    does.
    """

    def __init__(self, project: Path, runner: Path, home: Path, server: str = "") -> None:
        self._project, self.home = project, home
        self._bst = installed() / "bin/bst"
        path = f"{runner}:{buildbox()}:{os.environ['PATH']}"
        self.env = {"HOME": str(home), "PATH": path, "LC_ALL": "C.UTF-8"}
        home.mkdir()
        config = home / ".config"
        config.mkdir()
        text = "scheduler: {on-error: continue}\n"
        if server:
            server = server.replace("grpc://", "http://")
            text += "remote-execution:\n"
            for service in ("execution-service", "storage-service", "action-cache-service"):
                text += f"  {service}: {{url: {json.dumps(server)}}}\n"
        (config / "buildstream.conf").write_text(text)

    def argv(self, *words: str) -> list[str]:
        return [str(self._bst), "--no-interactive", "--no-colors", *words]

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.argv(*words), cwd=self._project, env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run(self, *words: str, status: int = 0) -> str:
        """The output of bst, which has to end with a status."""
        with self.start(*words) as process:
            try:
                out = process.communicate(timeout=240)[0].decode()
            except BaseException:
                process.terminate()
                raise
        assert process.returncode == status, out
        return out

    def digests(self, *elements: str) -> dict[str, str]:
        """The digests of the artifacts of elements."""
        told = "%{name} %{state} %{artifact-cas-digest}||"
        out = subprocess.run(
            self.argv("show", "--deps", "all", "--format", told, *elements), cwd=self._project,
            env=self.env, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=120,
        ).stdout.decode()  # fmt: skip
        lines = [line.split() for line in out.replace("\n", "").split("||") if line.strip()]
        return {name: f"{state} {digest}" for name, state, *digest in lines}


def find_make() -> list[Path]:
    """GNU make, its loader and libraries; skips the test without it, or without autotools."""
    make = shutil.which("make")
    require(make, "there is no make (apt: make)")
    found = list(installed().glob("lib/python3*/site-packages/buildstream_plugins"))
    require(found, "$SANDBOXLIB_CLUSTER has no buildstream-plugins, which has autotools elements")
    assert make is not None
    told = subprocess.run(["ldd", make], capture_output=True, text=True, check=False).stdout
    # "libc.so.6 => /lib/libc.so.6 (0x...)", and of the loader the path alone
    words = [word for word in told.split() if word.startswith("/")]
    return [Path(make), *map(Path, words)]


def make_base(base: Path, busybox: str) -> None:
    """A root with a shell and make."""
    (base / "bin").mkdir(parents=True)
    shutil.copy(busybox, base / "bin/busybox")
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        if name != "busybox":
            (base / "bin" / name).symlink_to("busybox")
    make, *libraries = find_make()
    shutil.copy(make, base / "bin/make")
    for path in libraries:
        place = base / path.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)


def make_project(project: Path, busybox: str) -> None:
    """A project of ten elements: import, manual, autotools, script, compose, filter and stack."""
    (project / "elements").mkdir(parents=True)
    (project / "project.conf").write_text(PROJECT)
    make_base(project / "files/base", busybox)
    source = project / "files/source"
    source.mkdir()
    (source / "configure").write_text("#!/bin/sh\nsed s/@name@/$1/ program.in > program\n")
    (source / "configure").chmod(0o755)
    (source / "program.in").write_text("#!/bin/sh\necho program of @name@\n")
    package = project / "files/package"
    package.mkdir()
    (package / "configure").write_text(CONFIGURE)
    (package / "configure").chmod(0o755)
    (package / "Makefile.in").write_text(MAKEFILE)
    (project / "files/data/etc").mkdir(parents=True)
    (project / "files/data/etc/data").write_text("data\n")
    for name, text in ELEMENTS.items():
        (project / f"elements/{name}.bst").write_text(text)


PROJECT = """
name: ten
min-version: '2.4'
element-path: elements
environment: {PATH: /bin}
plugins:
- {origin: pip, package-name: buildstream-plugins, elements: [autotools]}
"""
CONFIGURE = """#!/bin/sh
for word; do case $word in --bindir=*) bindir=${word#*=} ;; esac; done
sed s,@bindir@,$bindir, Makefile.in > Makefile
"""
MAKEFILE = """
bin = $(DESTDIR)@bindir@
many = $(DESTDIR)/many

made: part1 part2 part3
\tcat $^ > $@
part%:
\techo $@ > $@
install: made
\tmkdir -p $(bin) $(many)
\tcp made $(bin)/made
\tfor i in $$(seq 300); do echo $$i > $(many)/$$i; done
\trm $(many)/1*; mv $(many) $(DESTDIR)/some
"""

ELEMENTS = {
    "base": "kind: import\nsources: [{kind: local, path: files/base}]\n",
    "data": "kind: import\nsources: [{kind: local, path: files/data}]\n",
    "program": """
kind: manual
build-depends: [base.bst]
runtime-depends: [data.bst]
sources: [{kind: local, path: files/source}]
config:
  configure-commands: [./configure ten]
  build-commands: [chmod 755 program]
  install-commands:
  - mkdir -p %{install-root}/bin %{install-root}/share/doc
  - cp program %{install-root}/bin/ten
  - echo words > %{install-root}/share/doc/ten
public:
  bst:
    integration-commands: [ten > /etc/integrated]
    split-rules: {words: [/share/**]}
""",
    "links": """
kind: manual
build-depends: [base.bst]
config:
  install-commands:
  - |
    cd %{install-root}
    mkdir -p a/b empty
    echo 1 > a/b/one; chmod 700 a/b/one; ln a/b/one a/hard
    ln -s one a/b/link; ln -s /nowhere a/lost
    dd if=/dev/zero of=large bs=1M count=5 2>/dev/null
""",
    "uses": """
kind: manual
build-depends: [base.bst, program.bst, links.bst]
config:
  install-commands:
  - mkdir -p %{install-root}/share
  - ten > %{install-root}/share/said
  - cat /etc/integrated /a/b/one >> %{install-root}/share/said
  - "! touch /etc/forbidden"
""",
    "made": """
kind: autotools
build-depends: [base.bst]
sources: [{kind: local, path: files/package}]
""",
    "together": "kind: stack\ndepends: [base.bst, uses.bst, made.bst, program.bst]\n",
    "script": """
kind: script
build-depends: [base.bst, together.bst]
config:
  root-read-only: False
  commands:
  - mkdir -p %{install-root}
  - rm -r /some; mv /share /shared; echo new > /etc/data
  - ls -R /shared /etc > %{install-root}/listing
""",
    "composed": """
kind: compose
build-depends: [base.bst, together.bst]
config: {integrate: True, exclude: [words]}
""",
    "filtered": "kind: filter\nbuild-depends: [program.bst]\nconfig: {include: [words]}\n",
}
