# SPDX-License-Identifier: Apache-2.0
"""Runs of commands: the plan of a Sandbox, the job of a Command, a run, and slots."""
