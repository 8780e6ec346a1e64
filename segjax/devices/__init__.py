# SPDX-License-Identifier: Apache-2.0
"""Devices and processes: how many there are, and what they share."""
