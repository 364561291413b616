# SPDX-License-Identifier: Apache-2.0
"""Code that the executors share: the class Executor, trials, refusals, the tools' mounts."""
