# SPDX-License-Identifier: Apache-2.0
"""Writes the manual page of run-sandbox from its parser: python docs/site/man_page.py FILE"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import sandboxlib
from sandboxlib._cli import options, store

ENVIRONMENT = {
    "SANDBOXLIB_BACKEND": "the executor, where --executor names none",
    "PATH": "where tools like bwrap and newuidmap are looked for; the command has another PATH",
    "TERM": "with --tty the command has it too",
}
EXAMPLES = {
    "A shell without network, in which only /tmp can be written to:": "run-sandbox / sh",
    "A build that sees the sources read-only, and writes to one directory:": (
        'run-sandbox --bind-ro "$PWD:/tmp/src" --bind "$PWD/out:/tmp/out" --cwd /tmp/src / make'
    ),
    "A stranger's program, with limits and a record of what it used:": (
        "run-sandbox --user 1000 --memory 128M --pids 16 --timeout 4 --json ROOT /program"
    ),
    "An image, with a variable of the caller:": "run-sandbox --env LANG image.tar",
}


def page() -> str:
    """The page, in the language of man(7)."""
    parser = options.run_parser("run-sandbox")
    lines = [
        '.\\" SPDX-License-Identifier: Apache-2.0',
        '.\\" Made by docs/site/man_page.py from sandboxlib/_cli/options.py: just man',
        f'.TH RUN\\-SANDBOX 1 "" "sandboxlib {sandboxlib.__version__}" "User Commands"',
        *section("NAME", r"run\-sandbox \- run a command in a sandbox of its own"),
        ".SH SYNOPSIS",
        synopsis("run-sandbox", "[options] PATH [COMMAND ...]"),
        ".br",
        synopsis("run-sandbox doctor", "[--json]"),
        ".br",
        synopsis("run-sandbox store", "list|prune|verify [options]"),
        ".br",
        synopsis("run-sandbox --reproduce FILE", "[--run | COMMAND ...]"),
        *section("DESCRIPTION", text(options.DESCRIPTION)),
        ".PP",
        text(
            "What is not said is safe: there is no network but lo, no other process can be seen, "
            "/tmp is empty and the command's own, and no file of the root can be written. All that "
            "follows PATH belongs to the command; a -- may stand before PATH and before COMMAND."
        ),
        ".PP",
        text(options.NOTES),
        ".SH OPTIONS",
        *(line for group in parser._action_groups for line in of_group(group)),
        ".SH DOCTOR",
        text(options.doctor_parser("").description or ""),
        *of_group(options.doctor_parser("")._action_groups[1], title=""),
        ".SH STORE",
        text(store.store_parser("").description or ""),
        *of_group(store.store_parser("")._action_groups[1], title=""),
        ".SH REPRODUCE",
        text(options.reproduce_parser("").description or ""),
        *(of_group(options.reproduce_parser("")._action_groups[1], title="")),
        *section("EXIT STATUS", text(options.EXIT_STATUS)),
        ".SH ENVIRONMENT",
        *(line for name, what in ENVIRONMENT.items() for line in (".TP", bold(name), text(what))),
        ".SH EXAMPLES",
        *(line for what, command in EXAMPLES.items() for line in example(what, command)),
        *section("SEE ALSO", r"\fBbwrap\fR(1), \fBunshare\fR(1), \fBcapabilities\fR(7)"),
    ]
    return "\n".join(lines) + "\n"


def section(title: str, body: str) -> list[str]:
    return [f'.SH "{title}"', body]


def of_group(group: argparse._ArgumentGroup, title: str | None = None) -> Iterator[str]:
    """The options of a group of the parser, below a title of their own."""
    if not group._group_actions:
        return
    heading = (group.title or "").capitalize() if title is None else title
    if heading and heading not in ("Options", "Positional arguments"):
        yield f'.SS "{heading}"'
    for action in group._group_actions:
        yield ".TP"
        yield term(action)
        yield text((action.help or "") % {**vars(action), "prog": "run-sandbox"})


def term(action: argparse.Action) -> str:
    if not action.option_strings:
        return r"\fIPATH\fR [\fICOMMAND\fR ...]"
    value = ""
    if action.nargs != 0:
        value = action.metavar if isinstance(action.metavar, str) else ""
        value = value or ("|".join(action.choices) if action.choices else action.dest.upper())
        value = " " + re.sub(r"[A-Za-z]+", r"\\fI\g<0>\\fR", escaped(value))
    return ", ".join(bold(name) + value for name in action.option_strings)


def example(what: str, command: str) -> list[str]:
    return [".PP", text(what), ".PP", ".RS 4", ".nf", f"$ {escaped(command)}", ".fi", ".RE"]


def synopsis(command: str, rest: str) -> str:
    return f"{bold(command)} {text(rest)}"


def bold(word: str) -> str:
    return rf"\fB{escaped(word)}\fR"


def text(paragraph: str) -> str:
    """A paragraph, in lines that a diff can show; no line begins with a control character."""
    lines = textwrap.wrap(escaped(paragraph), 90, break_long_words=False, break_on_hyphens=False)
    return "\n".join(rf"\&{line}" if line[:1] in (".", "'") else line for line in lines)


def escaped(words: str) -> str:
    return words.replace("\\", r"\e").replace("-", r"\-").replace("`", r"\(ga")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
