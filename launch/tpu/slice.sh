# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# What the scripts here share: which slice, and how to reach its workers.

: "${TPU_NAME:?is not set; choose a name for the slice}"
: "${TPU_ZONE:?is not set; give the zone of the slice, as us-central2-b}"

# Prints a command as it could be typed, and runs it.
show() {
  printf '+' >&2
  printf ' %q' "$@" >&2
  printf '\n' >&2
  "$@"
}

# on_workers WORKERS COMMAND: WORKERS is all, or the number of one.
on_workers() {
  show gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$TPU_ZONE" \
    --worker="$1" --command="$2"
}
