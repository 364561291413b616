# SPDX-License-Identifier: Apache-2.0
"""The values that say what to run and where: frozen, checked when they are made."""
