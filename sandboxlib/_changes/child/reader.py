# SPDX-License-Identifier: Apache-2.0
"""The program that reads an upper, in a sandbox that the parent made before; the parent runs it by
path.

It only finds its own folder: Python compiles a program anew each time, and a module once.
"""

from __future__ import annotations

import os
import sys

if not __package__:  # run by path
    __package__ = "reader"
    _package = type(sys)(__package__)
    _package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules[__package__] = _package

from . import jobs

if __name__ == "__main__":
    os._exit(jobs.main(sys.argv[1:]))
