# SPDX-License-Identifier: Apache-2.0
"""U-Net and FCN in JAX/Flax, exactly as published, and fast."""
