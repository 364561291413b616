# SPDX-License-Identifier: Apache-2.0
"""The directory in which layers, images and inputs are kept from run to run."""
