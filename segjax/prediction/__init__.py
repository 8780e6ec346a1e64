# SPDX-License-Identifier: Apache-2.0
"""Prediction of image files of any size: from files to files."""
