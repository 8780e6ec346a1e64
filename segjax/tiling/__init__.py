# SPDX-License-Identifier: Apache-2.0
"""Overlap tiles: arrays in, arrays out."""
