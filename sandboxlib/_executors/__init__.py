# SPDX-License-Identifier: Apache-2.0
"""What the executors share: the class Executor, trials, refusals."""
