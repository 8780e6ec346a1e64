# SPDX-License-Identifier: Apache-2.0
"""Options of XLA that make compiling on CPUs take less than half the time.

A jaxlib that does not know an option in XLA_FLAGS ends the process. These are
known to jaxlib 0.10; 0.12 has the first no more.
"""

from importlib import metadata

_IS_KNOWN = metadata.version('jaxlib').startswith('0.10.')
QUICK_FLAGS = ''
if _IS_KNOWN:
  # Both cores are busy, so that splitting a program over threads costs more.
  QUICK_FLAGS = (
    '--xla_cpu_use_fusion_emitters=false '
    '--xla_cpu_parallel_codegen_split_count=1'
  )
