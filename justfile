# SPDX-License-Identifier: Apache-2.0
# The tasks of a developer; `just` alone lists them. `pip install -e '.[dev]'` brings just (rust-just).
# .ci/run and .pre-commit-config.yaml call these recipes, so that each check has one definition.

# The environment whose tools are used: `just bin=/elsewhere/bin style`.
bin := ".venv/bin"
python := bin / "python"
warnings := "-std=gnu11 -O2 -fPIC -Wall -Wextra -Wshadow -Werror -fanalyzer"

# List the tasks
[private]
default:
    @"{{just_executable()}}" --list --unsorted

# Make .venv with everything that a developer needs, and build the core
setup:
    python3 -m venv .venv
    .venv/bin/pip install -q -e '.[dev,docs]'

# Compile the core again after a change in csrc/
build:
    "{{python}}" setup.py -q build_ext --inplace

# The loop while you work: build, then the tests that you name, and stop at the first failure
loop +tests: build
    "{{python}}" -m pytest -q -x {{tests}}

# The tests without those marked slow; `just test --all` runs every one
test *args: build
    "{{python}}" -m pytest {{args}}

# Formatting and lint of Python and C
style:
    "{{bin}}/ruff" format --check .
    "{{bin}}/ruff" check .
    clang-format --dry-run -Werror $(git ls-files '*.c' '*.h')

# Format Python and C, and repair what ruff can repair
format:
    "{{bin}}/ruff" format .
    "{{bin}}/ruff" check --fix .
    clang-format -i $(git ls-files '*.c' '*.h')

# Types: mypy --strict of the package; it and pyright of the examples and of tests/lib/typed.py
types:
    "{{bin}}/mypy" --strict
    "{{bin}}/pytest" -q --all tests/unit/test_types.py

# Warnings and gcc's static analysis of all C files; takes the compilers of the core
warnings *compilers="gcc":
    #!/usr/bin/env bash
    set -euo pipefail
    "{{python}}" -c 'import build_ffi; build_ffi.build_init()'
    for compiler in {{compilers}}; do
        for file in $(git ls-files 'csrc/*.c'); do
            "$compiler" {{warnings}} "-DSBX_INIT=\"$PWD/sandboxlib/_init\"" \
                "-DSBX_INIT_SESSION=\"$PWD/sandboxlib/_init_session\"" \
                "-DSBX_INIT_CPU_TIME=\"$PWD/sandboxlib/_init_cpu_time\"" \
                "-DSBX_INIT_LAYERS=\"$PWD/sandboxlib/_init_layers\"" -c "$file" -o /dev/null
        done
        # In the programs of the reapers some of the code is another.
        for file in $(git ls-files 'csrc/child/*.c' 'csrc/reaper/*.c'); do
            for program in RUN SBX_IN_SESSION SBX_WATCHES_CPU SBX_STACKS; do
                "$compiler" {{warnings}} -DSBX_IN_REAPER "-D$program" -c "$file" -o /dev/null
            done
        done
    done
    for file in $(git ls-files 'tests/*.c'); do
        gcc {{warnings}} -c "$file" -o /dev/null
    done

# Build the documentation as a site in build/site; a warning is an error
docs:
    "{{bin}}/sphinx-build" -q -E -a -W --keep-going -c docs/site . build/site
    @echo "build/site/docs/index.html"

# Every check that runs no test
check: style types warnings docs

# Write docs/run-sandbox.1 again, after a change of the options of run-sandbox
man:
    "{{python}}" docs/site/man_page.py docs/run-sandbox.1

# The wheel and the source distribution, in dist/
wheel:
    "{{python}}" -m build -q

# A few rows of the benchmark, in seconds, as any user
bench:
    "{{python}}" -m sandboxlib bench

# All that continuous integration does, as root on Debian; it installs packages
ci:
    .ci/run
