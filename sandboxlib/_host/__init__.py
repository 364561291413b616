# SPDX-License-Identifier: Apache-2.0
"""The machine that the caller runs on: what it allows, and which tools it has."""
