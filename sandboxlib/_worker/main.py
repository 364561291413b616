# SPDX-License-Identifier: Apache-2.0
"""The program sandboxlib-worker: its flags, its signals, and the order of beginning and end."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

from .._version import __version__
from ..errors import SandboxError
from .config import KEYS, TABLES, Config, print_config, read_config
from .logs import Log
from .notify import Notifier

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from .worker import Worker

DESCRIPTION = (
    "Execute the actions that a remote execution server gives to workers (Remote Workers API, as "
    "BuildGrid speaks it), each in a sandbox of its own. SIGTERM ends it when the running actions "
    "are done, a second one at once; SIGHUP reads the token and the certificates again."
)
#: The exit status after a wrong key or flag, as argparse has it, and after a second SIGTERM.
USAGE, TERMINATED = 2, 128 + signal.SIGTERM


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sandboxlib-worker", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"sandboxlib {__version__}")
    parser.add_argument("--config", metavar="FILE", help="the configuration, in TOML")
    parser.add_argument(
        "--print-config", action="store_true", help="print the configuration as TOML, and end"
    )
    for key in KEYS:
        parser.add_argument(key.flag, dest=key.name, metavar=key.metavar, help=_help(key.help))
    for name, flag in TABLES.items():
        text = f"one key of the table [{name}]; may be given several times"
        parser.add_argument(
            f"--{flag}", dest=name, metavar="NAME=VALUE", action="append", help=text
        )
    return parser


def _help(text: str) -> str:
    return text.replace("%", "%%")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program. Returns the exit status."""
    flags = vars(make_parser().parse_args(argv))
    path, only_prints = flags.pop("config"), flags.pop("print_config")
    try:
        config = read_config(path, flags)
        if only_prints:
            sys.stdout.write(print_config(config))
            return 0
        from .worker import Worker

        log = Log(config.log_format, config.log_level, worker=config.name)
        worker = Worker(config, log)
    except (SandboxError, ImportError) as error:
        print(f"sandboxlib-worker: {error}", file=sys.stderr)
        return USAGE
    return run(worker, config, log, Notifier())


def run(worker: Worker, config: Config, log: Log, notifier: Notifier) -> int:
    """Run a worker until a signal ends it. Only the main thread may call it."""
    terms = []

    def terminate(number: int, frame: FrameType | None) -> None:
        terms.append(number)
        if len(terms) > 1:
            # The reapers of the actions see this process end, and kill what they started.
            os._exit(128 + number)
        worker.session.drain()

    def reload(number: int, frame: FrameType | None) -> None:
        worker.reload()

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, terminate)
    signal.signal(signal.SIGHUP, reload)
    worker.on_status = notifier.status
    log.info("worker begins", server=config.server, slots=config.slots, cache=config.cache)
    thread = threading.Thread(target=worker.session.run, name="session")
    thread.start()
    _watch(worker, thread, notifier, terms)
    worker.close()
    log.info("worker ends")
    return 0


def _watch(
    worker: Worker, thread: threading.Thread, notifier: Notifier, terms: Sequence[int]
) -> None:
    """Tell the service manager how the worker is, until the session is over."""
    pause = min(1.0, (notifier.watchdog or 2.0) / 2)
    is_ready = is_stopping = False
    while thread.is_alive():
        thread.join(pause)
        if not is_ready and worker.session.known.is_set():
            is_ready = True
            notifier.ready("connected")
        if terms and not is_stopping:
            is_stopping = True
            notifier.stopping("draining")
        if notifier.watchdog and time.monotonic() - worker.session.beat < worker.session.silence:
            notifier.alive()


if __name__ == "__main__":
    sys.exit(main())
