# SPDX-License-Identifier: Apache-2.0
"""Many runs: processes with handles, event loops, maps, thread pools."""
