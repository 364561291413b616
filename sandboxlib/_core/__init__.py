# SPDX-License-Identifier: Apache-2.0
"""The compiled core. No module outside this folder uses cffi."""
