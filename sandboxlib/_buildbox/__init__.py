# SPDX-License-Identifier: Apache-2.0
"""buildbox-run-sandboxlib: runs an Action for BuildStream, as buildbox-run does."""
