# SPDX-License-Identifier: Apache-2.0
"""Scores of predictions of whole images, and pictures of them."""
