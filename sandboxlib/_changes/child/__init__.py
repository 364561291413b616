# SPDX-License-Identifier: Apache-2.0
"""The program that reads an upper, which runs confined, by path. It imports nothing of ours."""
