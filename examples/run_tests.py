# SPDX-License-Identifier: Apache-2.0
"""Runs every test of a directory in a sandbox, within limits of its own, and writes a summary as
JUnit has it:

    python examples/run_tests.py TESTS REPORT.xml

A test is a program; a line `# limits: timeout=2 address_space=64M` in it changes its limits.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

from sandboxlib import STDOUT, Command, Limits, Mount, Result, Sandbox, SandboxError

DEFAULTS = {"timeout": "10", "cpu_time": "5", "address_space": "512M"}


# [commands]
def command_of(test: Path) -> Command:
    line = re.search(r"^# limits: (.*)$", test.read_text(), re.MULTILINE)
    own = dict(word.split("=") for word in line[1].split()) if line else {}
    options = DEFAULTS | own
    limits = Limits(
        cpu_time=float(options["cpu_time"]), address_space=options["address_space"], core=0
    )
    return Command(
        [f"/tmp/tests/{test.name}"],
        stderr=STDOUT,
        timeout=float(options["timeout"]),
        limits=limits,
        max_output="1M",
    )


# [run]
def run(directory: Path) -> ElementTree.Element:
    tests = sorted(path for path in directory.iterdir() if path.is_file())
    box = Sandbox("/", extra_mounts=[Mount.bind(directory, "/tmp/tests", read_only=True)])
    suite = ElementTree.Element("testsuite", name=directory.name, tests=str(len(tests)))
    with box:
        results = box.map(map(command_of, tests), on_failure="continue")
        for test, result in zip(tests, results, strict=True):
            suite.append(case_of(test.name, result))
    for kind in ("failure", "error"):
        suite.set(f"{kind}s", str(len(suite.findall(f"testcase/{kind}"))))
    return suite


# [case]
def case_of(name: str, result: Result | SandboxError) -> ElementTree.Element:
    case = ElementTree.Element("testcase", name=name)
    if isinstance(result, SandboxError):  # the test could not begin
        ElementTree.SubElement(case, "error", message=str(result))
        return case
    case.set("time", f"{result.wall:.3f}")
    if not result.ok or "cpu_time" in result.limits_hit:
        why = "timeout" if result.timed_out else ", ".join(result.limits_hit)
        message = why or f"exit status {result.exit}"
        failure = ElementTree.SubElement(case, "failure", message=message)
        failure.text = result.stdout.decode(errors="replace")
    return case


# [end]


def main() -> int:
    suite = run(Path(sys.argv[1]))
    ElementTree.ElementTree(suite).write(sys.argv[2], encoding="unicode", xml_declaration=True)
    for case in suite:
        bad = next(iter(case), None)
        print(f"{case.get('name')}: {'passed' if bad is None else bad.get('message')}")
    return 0 if suite.get("failures") == suite.get("errors") == "0" else 1


if __name__ == "__main__":
    sys.exit(main())
