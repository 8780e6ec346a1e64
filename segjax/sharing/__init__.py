# SPDX-License-Identifier: Apache-2.0
"""Networks in the formats of others: ONNX, BioImage Model Zoo, model hubs."""
