# SPDX-License-Identifier: Apache-2.0
"""Several ways to run commands beside the caller: Process, event loops, map, a thread pool."""
