# SPDX-License-Identifier: Apache-2.0
"""What a run changed in an overlay: the caller's side here, the confined reader's in child/."""
