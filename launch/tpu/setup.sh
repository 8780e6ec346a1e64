#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Brings the last commit of this repository to every worker, and installs it
# with Python 3.12 in ~/segjax-env. With TPU_NFS=HOST:/SHARE, as of a Filestore
# instance, mounts that at /mnt/segjax. Can be run again, after a commit.
set -euo pipefail
source "$(dirname "$0")/slice.sh"

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
show git -C "$(dirname "$0")/../.." archive --format=tar.gz \
  --output="$archive" HEAD
show gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:segjax.tar.gz" \
  --zone="$TPU_ZONE" --worker=all

# Code alone is removed: a run may lie beside it.
commands='set -e
mkdir -p segjax
rm -rf segjax/segjax segjax/configs
tar -xzf segjax.tar.gz -C segjax
python3 -m pip install --user --quiet uv
python3 -m uv venv --quiet --allow-existing --python 3.12 segjax-env
python3 -m uv pip install --quiet --python segjax-env/bin/python -e "segjax[tpu]"'
if [[ -n ${TPU_NFS:-} ]]; then
  commands+="
sudo apt-get install --yes --quiet nfs-common
sudo mkdir -p /mnt/segjax
mountpoint -q /mnt/segjax || sudo mount -t nfs $(printf %q "$TPU_NFS") /mnt/segjax"
fi
on_workers all "$commands"
