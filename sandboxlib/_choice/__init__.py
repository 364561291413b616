# SPDX-License-Identifier: Apache-2.0
"""Which executor runs a call, and what the doctor says of each."""
