# SPDX-License-Identifier: Apache-2.0
"""Control groups: limits on all processes of a run together."""
