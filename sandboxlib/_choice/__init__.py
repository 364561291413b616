# SPDX-License-Identifier: Apache-2.0
"""Chooses the executor of a call, and examines each executor for the doctor."""
