# SPDX-License-Identifier: Apache-2.0
# PYTHON_ARGCOMPLETE_OK
"""`python -m sandboxlib`, and the entry point of `run-sandbox`: see _cli/run.py."""

from __future__ import annotations

import sys

from ._cli.run import main
from ._cli.run import run_sandbox_command as run_sandbox_command

if __name__ == "__main__":
    sys.exit(main())
