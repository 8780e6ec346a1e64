#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Creates the slice. Further arguments go to gcloud: create.sh --spot
set -euo pipefail
source "$(dirname "$0")/slice.sh"
: "${TPU_TYPE:?is not set; give an accelerator type, as v4-32}"
: "${TPU_VERSION:?is not set; give a software version, as tpu-ubuntu2204-base}"

show gcloud compute tpus tpu-vm create "$TPU_NAME" --zone="$TPU_ZONE" \
  --accelerator-type="$TPU_TYPE" --version="$TPU_VERSION" "$@"
