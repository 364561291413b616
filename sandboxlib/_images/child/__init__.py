# SPDX-License-Identifier: Apache-2.0
"""The program that unpacks an image. The parent runs it by path, in a sandbox, and it imports no
module of sandboxlib from outside this folder.
"""
