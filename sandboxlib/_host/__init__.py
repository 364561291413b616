# SPDX-License-Identifier: Apache-2.0
"""The machine that the caller runs on: its kernel settings, its mounts, its tools."""
