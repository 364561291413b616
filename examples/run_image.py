# SPDX-License-Identifier: Apache-2.0
"""Runs the command of an image, or another one in it:

python examples/run_image.py IMAGE [ARG...]
"""

from __future__ import annotations

import sys

from sandboxlib import Command, Image, Sandbox


# [image]
def run(path: str, args: list[str]) -> int:
    image = Image(path)
    command = Command(args) if args else image.command()
    with Sandbox(image) as box:
        result = box.run(command.replace(stdout=1, stderr=2))
    return result.exit if result.exit >= 0 else 128 - result.exit


# [end]

if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
