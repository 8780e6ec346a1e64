# SPDX-License-Identifier: Apache-2.0
"""Experiment cards, their sections as dataclasses, and checks of both."""
