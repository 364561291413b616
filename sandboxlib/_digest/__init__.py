# SPDX-License-Identifier: Apache-2.0
"""The digest of a Command in a Sandbox, and what has none."""
