# SPDX-License-Identifier: Apache-2.0
"""The engine of images, which sandboxlib.load shows: the parent's side of unpacking."""
