# SPDX-License-Identifier: Apache-2.0
"""What a run leaves in its workdir, and the way back from it."""
