# SPDX-License-Identifier: Apache-2.0
"""Our docstrings for Sphinx: a list of names with what is said of each becomes a definition list.

    name: what it is, with     or     name: type    what it is, with its lines
        further lines                               below each other

A docstring is read in a terminal first, so it has no markup; this module makes the markup.
"""

from __future__ import annotations

import re
import textwrap

_NAMES = r"(?P<names>\*{0,2}[a-z_]\w*(?:, \*{0,2}[a-z_]\w*)*)"
_COLUMNS = re.compile(rf"{_NAMES}(?:: ?(?P<type>\S.*?))? {{2,}}(?P<text>\S.*)$")
_COLON = re.compile(rf"{_NAMES}: (?P<text>\S.*)$")


def process(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Sphinx's autodoc-process-docstring: changes the lines in place."""
    lines[:] = to_rst("\n".join(lines).expandtabs()).splitlines()


def to_rst(docstring: str) -> str:
    blocks = re.split(r"\n[ \t]*\n", docstring.strip("\n"))
    return "\n\n".join(_code(block) or _definitions(block) or _text(block) for block in blocks)


def _text(block: str) -> str:
    """A paragraph; a block with columns that we cannot read stays as it was typed."""
    if re.search(r"^ ", block, re.MULTILINE):
        return f".. code-block:: text\n\n{textwrap.indent(block, '    ')}"
    return _plain(block)


def _plain(text: str) -> str:
    """RST's markup made harmless; `name` is a literal."""
    text = re.sub(r"(?<!`)`([^`\n]+)`(?!`)", r"``\1``", text)
    return re.sub(r"(?<!`)(\*{1,2}|\|)(?=\w)", r"\\\1", text)


def _code(block: str) -> str | None:
    if not all(line.startswith("    ") for line in block.splitlines()):
        return None
    language = "python" if "|-" not in block else "text"
    return f".. code-block:: {language}\n\n{textwrap.indent(textwrap.dedent(block), '    ')}"


def _definitions(block: str) -> str | None:
    """The block as definitions, if each of its lines begins one or belongs to one."""
    items: list[tuple[str, list[str]]] = []
    starts = [match.start("text") for match in map(_COLUMNS.match, block.splitlines()) if match]
    column = max(set(starts), key=starts.count, default=0)
    for line in block.splitlines():
        match = _COLUMNS.match(line) or _COLON.match(line)
        head = re.fullmatch(_NAMES, line[:column].rstrip())
        if match or head:
            found = match or head
            assert found
            names = ", ".join(f"``{name}``" for name in found["names"].split(", "))
            type_ = found.groupdict().get("type")
            text = match["text"] if match else line[column:]
            items.append((f"{names}: {_plain(type_)}" if type_ else names, [text]))
        elif items and line.startswith("  "):
            items[-1][1].append(line.strip())
        else:
            return None
    return "\n\n".join(
        f"{term}\n    " + "\n    ".join(_plain(text) for text in texts) for term, texts in items
    )
