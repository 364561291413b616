# SPDX-License-Identifier: Apache-2.0
"""HOW a command runs: the plan of a Sandbox, a job, a run, slots."""
