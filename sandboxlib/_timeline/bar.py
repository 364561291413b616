# SPDX-License-Identifier: Apache-2.0
"""Bar: the progress of a map as rich draws it. Only this file imports rich."""

from __future__ import annotations

from typing import TextIO

from rich import progress
from rich.console import Console


class Bar:
    """A bar on a terminal, without a thread that redraws it: it changes when a command ended."""

    def __init__(self, file: TextIO, title: str, total: int | None) -> None:
        self._shown = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rest]}", markup=False),
            progress.TimeRemainingColumn(),
            console=Console(file=file, highlight=False),
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._shown.add_task(title, total=total, rest="")
        self._shown.start()

    def show(self, ended: int, total: int | None, rest: str) -> None:
        self._shown.update(self._task, completed=ended, total=total, rest=rest)
        self._shown.refresh()

    def end(self, ended: int, total: int | None, rest: str) -> None:
        try:
            self.show(ended, total, rest)
        finally:
            self._shown.stop()
