# SPDX-License-Identifier: Apache-2.0
"""The compiled core. Only this folder says ffi."""
