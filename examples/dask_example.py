# SPDX-License-Identifier: Apache-2.0
"""Sandboxed commands on dask.distributed: `pip install '.[dask]'`, then, as for any run,

    python examples/dask_example.py ROOT

A Sandbox is a value: it goes to every worker once, and each keeps what speeds up its runs. Results,
and the errors of commands that cannot be run, come back as they are. LocalCluster stands for any
cluster whose machines have ROOT, and workers that may make sandboxes.
"""

from __future__ import annotations

import sys

from dask.distributed import Client, LocalCluster

from sandboxlib import Result, Sandbox


def run(command: list[str], box: Sandbox) -> Result:
    return box.run(command)


def main(root: str) -> None:
    box = Sandbox(root)
    commands = [["echo", f"hello from {number}"] for number in range(8)]
    cluster = LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None)
    with cluster, Client(cluster) as client:
        place = client.scatter(box, broadcast=True)
        # pure=False: the same command twice is two runs.
        futures = client.map(run, commands, box=place, pure=False)
        for number, result in enumerate(client.gather(futures)):
            print(f"{number}: {result.stdout.decode()}", end="")


if __name__ == "__main__":
    main(sys.argv[1])
