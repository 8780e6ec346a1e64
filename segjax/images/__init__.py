# SPDX-License-Identifier: Apache-2.0
"""Image files in and out, whole or by windows; one file for each format."""
