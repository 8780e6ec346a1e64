#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Deletes the slice and its disks; gcloud asks before. Fetch results first.
set -euo pipefail
source "$(dirname "$0")/slice.sh"

show gcloud compute tpus tpu-vm delete "$TPU_NAME" --zone="$TPU_ZONE" "$@"
