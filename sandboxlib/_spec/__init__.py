# SPDX-License-Identifier: Apache-2.0
"""WHAT is wanted: frozen values, checked when they are made."""
