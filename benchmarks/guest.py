# SPDX-License-Identifier: Apache-2.0
"""A program that times another library, in the environment of that library: see rows.Guest.

    python guest.py NAME ROOT MEGABYTES [SOURCE TARGET ...]

It prints "ready", and then for each line that it reads the nanoseconds of one run. It imports
nothing of ours: `sandboxlib` is the earlier version here.
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
    os.dup2(2, 1)  # the library may print something, which must not be taken for an answer
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
