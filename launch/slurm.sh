#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Trains on GPU nodes under Slurm, one process a GPU, which is what jax expects
# there:
#
#   sbatch --nodes=2 launch/slurm.sh --config=CONFIG --workdir=DIR
#
# Submitted from the repository, with its environment active; DIR on a file
# system of all nodes. The same command goes on with a run that has ended.
#
#SBATCH --job-name=segjax
#SBATCH --nodes=1
# Not --gpus-per-task: each process has to see all GPUs, and takes one.
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# To every process, two minutes before the time is over.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=segjax-%j.log
set -euo pipefail
if [[ $# -eq 0 ]]; then
  echo "usage: sbatch $0 --config=CONFIG --workdir=DIR ..." >&2
  exit 2
fi

command=(srun --kill-on-bad-exit=1 python -m segjax.main "$@")
printf '+' >&2
printf ' %q' "${command[@]}" >&2
printf '\n' >&2
exec "${command[@]}"
