#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Copies a workdir from the slice: fetch.sh /mnt/segjax/runs/isbi runs
set -euo pipefail
source "$(dirname "$0")/slice.sh"
if [[ $# -ne 2 ]]; then
  echo "usage: $0 WORKDIR_ON_THE_SLICE FOLDER_HERE" >&2
  exit 2
fi

show mkdir -p "$2"
show gcloud compute tpus tpu-vm scp --recurse "$TPU_NAME:$1" "$2" \
  --zone="$TPU_ZONE" --worker=0
