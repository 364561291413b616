# SPDX-License-Identifier: Apache-2.0
"""Runs inside the environment of another library, and times it there: see rows.Guest.

    python guest.py NAME ROOT MEGABYTES [SOURCE TARGET ...]

It answers "ready", and each line that it reads with the nanoseconds of one run. It imports nothing
of ours: `sandboxlib` is the earlier one here.
"""

import os
import sys
import time


def earlier(root, binds):
    from sandboxlib import chroot

    return lambda: chroot.run_sandbox(["/say"], filesystem_root=root)[1]


def sandlock(root, binds):
    from sandlock import Sandbox

    box = Sandbox(chroot=root, fs_readable=["/"], fs_writable=["/tmp"], fs_mount_ro=dict(binds))
    return lambda: box.run(["/say"]).stdout


def main():
    name, root, megabytes, *paths = sys.argv[1:]
    ballast = bytearray(os.urandom(1 << 20)) * int(megabytes)
    binds = list(zip(paths[1::2], paths[0::2], strict=True))
    run = {"sandboxlib": earlier, "sandlock": sandlock}[name](root, binds)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the library prints is no answer
    if run() != b"ok\n":
        sys.exit("the command did not say ok")
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter_ns()
        out = run()
        spent = time.perf_counter_ns() - start
        if out != b"ok\n":
            sys.exit("the command did not say ok")
        print(spent, file=answers, flush=True)
    del ballast


main()
