# SPDX-License-Identifier: Apache-2.0
"""The workdir of a run: config, lock, checkpoints, metrics and the log."""
