# SPDX-License-Identifier: Apache-2.0
"""The table of contents: the names that a notebook needs."""

# Networks, and images of any size through them.
from .models.unet import UNet as UNet
from .models.unet import UNet2015 as UNet2015
from .models.fcn import FCN as FCN
from .models.fcn import FCN8s as FCN8s
from .models.fcn import FCN16s as FCN16s
from .models.fcn import FCN32s as FCN32s
from .tiling.windows import predict_image as predict_image
from .tiling.settings import TileSettings as TileSettings
from .crf import Refinement as Refinement
from .crf import refine as refine

# Trained and published weights.
from .fitting import fit as fit
from .networks import load_run as load_run
from .networks import load_params as load_params
from .weights.files import write_params as write_params
from .weights.caffe import read_caffemodel as read_caffemodel
from .weights.surgery import fc_to_conv as fc_to_conv

# Pixels, training tiles, weights of the loss, and the loss.
from .data.preprocessing import standardise as standardise
from .data.preprocessing import to_unit_range as to_unit_range
from .data.augment import Augmentation as Augmentation
from .data.augment import augment as augment
from .data.border_weights import border_weights as border_weights
from .losses import cross_entropy as cross_entropy

# Single cells, and scores.
from .prediction.components import label_instances as label_instances
from .metrics.neuron import v_info as v_info
from .metrics.neuron import v_rand as v_rand
from .metrics.warping import warping_error as warping_error
from .metrics.confusion import confusion_matrix as confusion_matrix
from .metrics.confusion import segmentation_scores as segmentation_scores
from .metrics.cells import seg as seg
from .metrics.cells import average_precision as average_precision

__version__: str
