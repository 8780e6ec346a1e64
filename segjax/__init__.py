# SPDX-License-Identifier: Apache-2.0
"""U-Net and FCN in JAX/Flax, exactly as published, and fast."""

import lazy_loader

# The table of contents is __init__.pyi. Nothing in it is imported before use.
_find, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
  """Returns a name of the table, or `__version__`, that of the package."""
  if name == '__version__':
    from importlib import metadata  # Costs time, and few need it.

    return metadata.version('segjax')
  return _find(name)
