# SPDX-License-Identifier: Apache-2.0
"""What runs a command again, elsewhere or later, as a file."""
