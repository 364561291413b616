# SPDX-License-Identifier: Apache-2.0
"""Executes Actions of the Remote Execution API on this machine, for the worker and the runner."""
