# SPDX-License-Identifier: Apache-2.0
"""Weights of other frameworks: readers of their files, surgery on the trees."""
