# SPDX-License-Identifier: Apache-2.0
"""Prediction of image files of any size, and the outputs that it writes."""
