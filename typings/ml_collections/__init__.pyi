# SPDX-License-Identifier: Apache-2.0
"""Types of ml_collections, as far as segjax uses it.

The library has annotations, but none at `ConfigDict.__getattr__` and
`__getitem__`: a checker infers that config.model.name may be None or a method.
"""

from ml_collections.config_dict import ConfigDict as ConfigDict
