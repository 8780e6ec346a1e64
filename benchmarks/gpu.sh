#!/usr/bin/env bash
# Every GPU case and the tests that a GPU can fail, in under nine minutes:
#
#   benchmarks/gpu.sh [FOLDER] [FLAGS]
#
# Tables go to FOLDER (gpu_tables), a file each. Needs jax, flax, optax, orbax
# and torch, no network and no data; MONAI's table and the tests are left out
# where MONAI and pytest are missing. FLAGS, such as --rounds=1, follow the
# networks' own.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:-gpu_tables}
shift
mkdir -p "$folder"
deadline=$((SECONDS + 520))
failed=0

export XLA_PYTHON_CLIENT_PREALLOCATE=false  # PyTorch needs memory, too.

# table NAME SECONDS COMMAND: runs it for at most so long.
table() {
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  ((limit = limit < deadline - start ? limit : deadline - start))
  if ((limit > 5)) &&
    timeout "$limit" "$@" >"$folder/$name.part" 2>"$folder/$name.log"; then
    mv "$folder/$name.part" "$folder/$name.md"
    rm "$folder/$name.log"
    echo "$name: $((SECONDS - start)) s"
  else
    echo "$name: failed after $((SECONDS - start)) s, see $folder/$name.log"
    failed=1
  fi
}

has() { python -c "import $1" 2>/dev/null; }

python -c 'import jax; print(jax.devices())' || exit 1
shared=(--rounds=7 --calls=5 --peak_size=8192)
table unet_bf16_batch8 120 python -m benchmarks.unet --dtype=bfloat16 \
  --batch_size=8 "${shared[@]}" "$@"
table fcn_bf16 100 python -m benchmarks.fcn --dtype=bfloat16 \
  "${shared[@]}" "$@"
table unet_bf16 80 python -m benchmarks.unet --dtype=bfloat16 \
  "${shared[@]}" "$@"
table unet_tf32 80 python -m benchmarks.unet "${shared[@]}" "$@"
table augment 30 python -m benchmarks.augment --calls=20
if has monai; then
  table tiling_bf16 60 python -m benchmarks.tiling --width=64 --dtype=bfloat16
fi
table startup 60 python -m benchmarks.startup --width=64 --rounds=1
if has pytest && has xdist; then
  table tests 120 python -m pytest -n0 tests/test_layers.py \
    tests/test_upsampling.py tests/test_augment.py tests/test_unet.py
fi
exit $failed
