# SPDX-License-Identifier: Apache-2.0
"""Servers of the Remote Execution API: the connection, and the Runners that use it."""
