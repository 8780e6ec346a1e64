# SPDX-License-Identifier: Apache-2.0
"""Prediction from image files to files, of any size."""
