# SPDX-License-Identifier: Apache-2.0
"""The directive `{output-of} COMMAND`: the command, and what it prints as the site is built."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive


class OutputOf(Directive):
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        (command,) = self.arguments
        tools = Path(sys.executable).parent
        env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "COLUMNS": "90"}
        done = subprocess.run(
            shlex.split(command), env=env, capture_output=True, text=True, check=True
        )
        text = f"$ {command}\n{done.stdout}"
        return [nodes.literal_block(text, text, language="text")]
