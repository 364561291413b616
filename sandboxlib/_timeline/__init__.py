# SPDX-License-Identifier: Apache-2.0
"""What a caller sees of many runs: a timeline as a file, and progress on a terminal."""
