# SPDX-License-Identifier: Apache-2.0
"""The inputs of commands: what they are, and where they are staged; and their outputs."""
