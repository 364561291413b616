# SPDX-License-Identifier: Apache-2.0
"""A server of the Remote Execution API on this machine: BuildGrid over a PostgreSQL of its own."""
