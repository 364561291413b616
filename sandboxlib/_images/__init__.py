# SPDX-License-Identifier: Apache-2.0
"""Unpacking images: the parent's side here, the child's in child/. sandboxlib.load is the API."""
