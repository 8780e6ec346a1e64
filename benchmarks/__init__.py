# SPDX-License-Identifier: Apache-2.0
"""segjax and its twins in other frameworks, timed side by side.

Each file is a command that prints a Markdown table; README.md has what was
measured, and on what.
"""

import os

# Threads that spin at barriers stall each other where another process, or the
# pool of XLA, wants the cores: PyTorch took three times as long here.
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
