# SPDX-License-Identifier: Apache-2.0
"""System call filters: what they close, as programs for seccomp(2)."""
