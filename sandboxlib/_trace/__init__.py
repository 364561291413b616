# SPDX-License-Identifier: Apache-2.0
"""Which paths a command asks for: Sandbox.trace."""
