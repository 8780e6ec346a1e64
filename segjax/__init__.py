# SPDX-License-Identifier: Apache-2.0
"""U-Net and FCN in JAX/Flax, exactly as published, and fast."""

__version__: str


def __getattr__(name: str) -> str:
  """Returns `__version__`, that of the installed package."""
  if name == '__version__':
    from importlib import metadata  # Costs time, and few need it.

    return metadata.version('segjax')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
