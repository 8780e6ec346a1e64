# SPDX-License-Identifier: Apache-2.0
"""The networks by the names that configs use."""

from segjax.models.unet import UNet, UNet2015

MODELS = {'unet': UNet, 'unet_2015': UNet2015}
