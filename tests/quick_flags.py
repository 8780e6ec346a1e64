# SPDX-License-Identifier: Apache-2.0
"""Options of XLA that make compiling on CPUs take less than half the time.

A jaxlib that does not know an option in XLA_FLAGS ends the process. These are
known to jaxlib 0.10; 0.12 has the first no more.
"""

import re
from importlib import metadata

_NUMBERS = re.findall('[0-9]+', metadata.version('jaxlib'))
_VERSION = tuple(map(int, _NUMBERS[:3]))
# As segjax: older ones print errors for each program of a CPU that they find.
KEEPS_PROGRAMS = _VERSION >= (0, 10, 2)
_IS_KNOWN = _VERSION[:2] == (0, 10)
QUICK_FLAGS = ''
if _IS_KNOWN:
  # Both cores are busy, so that splitting a program over threads costs more.
  QUICK_FLAGS = (
    '--xla_cpu_use_fusion_emitters=false '
    '--xla_cpu_parallel_codegen_split_count=1'
  )
