# SPDX-License-Identifier: Apache-2.0
"""The option of XLA that halves the time of compiling on CPUs.

A jaxlib that does not know an option in XLA_FLAGS ends the process. This one is
known to jaxlib 0.10; 0.12 has it no more.
"""

from importlib import metadata

_IS_KNOWN = metadata.version('jaxlib').startswith('0.10.')
QUICK_FLAG = '--xla_cpu_use_fusion_emitters=false' if _IS_KNOWN else ''
