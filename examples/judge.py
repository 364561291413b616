# SPDX-License-Identifier: Apache-2.0
"""Compiles a stranger's C program and judges it by cases, each a file NAME.in and a file NAME.out:

python examples/judge.py SUBMISSION.c CASES
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from sandboxlib import Limits, Mount, Result, Sandbox

# [limits]
#: Root's commands get other ids; an ordinary user's have those of the user.
USER = 1000 if os.geteuid() == 0 else None
COMPILER = Limits(cpu_time=10, file_size="64M", address_space="1G")
PROGRAM = Limits(cpu_time=1, file_size=0, address_space="128M", core=0)


# [compile]
def compile_in(directory: Path, submission: Path) -> Result:
    box = Sandbox("/", limits=COMPILER, extra_mounts=[Mount.bind(directory, "/tmp/out")])
    with box:
        return box.run(
            ["cc", "-O2", "-x", "c", "-", "-o", "/tmp/out/program"],
            stdin=submission.read_bytes(),
            timeout=20,
            max_output="64k",
        )


# [judge]
def judge(box: Sandbox, case: Path) -> str:
    result = box.run(
        ["/tmp/submission/program"],
        stdin=case.read_bytes(),
        timeout=3,
        max_output="1M",
        on_overflow="kill",
    )
    if "output" in result.limits_hit:
        return "output limit exceeded"
    if result.timed_out or "cpu_time" in result.limits_hit:
        return "time limit exceeded"
    if not result.ok:
        return f"runtime error ({result.exit})"
    expected = case.with_suffix(".out").read_bytes()
    return "accepted" if result.stdout.split() == expected.split() else "wrong answer"


# [main]
def main() -> int:
    submission, cases = Path(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)  # the program runs with other ids
        compiled = compile_in(directory, submission)
        if not compiled.ok:
            print("compile error", compiled.stderr.decode(errors="replace"), sep="\n")
            return 1
        mounts = [Mount.bind(directory, "/tmp/submission", read_only=True)]
        with Sandbox("/", user=USER, limits=PROGRAM, extra_mounts=mounts) as box:
            verdicts = {case.stem: judge(box, case) for case in sorted(cases.glob("*.in"))}
    for case, verdict in verdicts.items():
        print(f"{case}: {verdict}")
    return 0 if set(verdicts.values()) == {"accepted"} else 1


# [end]

if __name__ == "__main__":
    sys.exit(main())
