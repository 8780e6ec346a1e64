# SPDX-License-Identifier: Apache-2.0
"""The command line: commands, their flags, their help and their endings."""
