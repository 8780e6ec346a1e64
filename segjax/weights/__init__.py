# SPDX-License-Identifier: Apache-2.0
"""Weights: readers of other frameworks' files, and parameter trees."""
