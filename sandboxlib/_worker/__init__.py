# SPDX-License-Identifier: Apache-2.0
"""The program sandboxlib-worker: it executes the actions that a server of the Remote Workers API
gives it. The extra sandboxlib[worker] has what it needs.
"""
