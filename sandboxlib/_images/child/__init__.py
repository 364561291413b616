# SPDX-License-Identifier: Apache-2.0
"""The program that unpacks an image. It is run by path, confined, and imports nothing from outside
of this folder."""
