# SPDX-License-Identifier: Apache-2.0
"""Builds a root in steps, as a Dockerfile does: each step is a layer over those before it.

python examples/stacked_layers.py ROOT SAVED.tar SCRIPT...
"""

from __future__ import annotations

import sys

from sandboxlib import Layer, Overlay, Sandbox


# [steps]
def build(root: str, scripts: list[str], saved: str) -> list[str | Layer]:
    layers: list[str | Layer] = [root]
    for script in scripts:
        with (
            Sandbox(Overlay(*layers), user="root") as box,
            box.run(["sh", "-c", script], changes="keep", check=True).changes as changes,
        ):
            for change in changes:
                print(change.kind, change.type, change.path)
            changes.save(saved, mtime=0)
            layers.append(changes.commit(mtime=0))
    return layers


# [end]


def main() -> int:
    layers = build(sys.argv[1], sys.argv[3:], sys.argv[2])
    with Sandbox(Overlay(*layers), user="root") as box:
        print(box.run(["ls", "/"], check=True).stdout.decode().split())
    for layer in layers[1:]:
        assert isinstance(layer, Layer)
        print(layer.digest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
