#!/usr/bin/env bash
# Every GPU case and the tests that a GPU can fail, in under nine minutes:
#
#   benchmarks/gpu.sh [FOLDER] [FLAGS]
#
# Tables go to FOLDER (gpu_tables), a file each. Needs jax, flax, optax, orbax
# and torch, no network and no data; left out are MONAI's table without MONAI,
# the start-up without what else segjax needs, and the tests without pytest.
#
# FLAGS go to every command: --width, --size and --rounds. NETWORKS are flags of
# those that compare networks alone, TESTS arguments of pytest, and limits of
# time are SLOWER times as long. To try all of it on a CPU, of which most is the
# compilation by PyTorch:
#
#   SLOWER=5 NETWORKS=--peak_size=64 TESTS=tests/test_upsampling.py \
#     benchmarks/gpu.sh tables --width=2 --size=188 --rounds=1
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
folder=gpu_tables
if (($#)); then
  folder=$1
  shift
fi
read -ra networks <<<"${NETWORKS:---rounds=7 --calls=5 --peak_size=8192}"
read -ra tests <<<"${TESTS:-tests/test_layers.py tests/test_upsampling.py \
tests/test_augment.py tests/test_unet.py}"
mkdir -p "$folder"
slower=${SLOWER:-1}
deadline=$((SECONDS + 520 * slower))
failed=0

export XLA_PYTHON_CLIENT_PREALLOCATE=false  # PyTorch needs memory, too.

# table NAME SECONDS COMMAND: runs it for at most so long.
table() {
  local name=$1 limit=$(($2 * slower)) start=$SECONDS cache
  shift 2
  # Of its own: a command that is stopped leaves files that are cut short.
  cache=$(mktemp -d)
  ((limit = limit < deadline - start ? limit : deadline - start))
  if ((limit > 5)) &&
    TORCHINDUCTOR_CACHE_DIR=$cache timeout "$limit" "$@" \
      >"$folder/$name.part" 2>"$folder/$name.log"; then
    mv "$folder/$name.part" "$folder/$name.md"
    rm "$folder/$name.log"
    echo "$name: $((SECONDS - start)) s"
  else
    echo "$name: failed after $((SECONDS - start)) s, see $folder/$name.log"
    failed=1
  fi
  rm -rf "$cache"
}

has() {
  python -c "import importlib.util as u, sys; sys.exit(not u.find_spec('$1'))"
}

python -c 'import jax; print(jax.devices())' || exit 1
table unet_bf16_batch8 120 python -m benchmarks.unet --dtype=bfloat16 \
  --batch_size=8 "${networks[@]}" "$@"
table fcn_bf16 100 python -m benchmarks.fcn --dtype=bfloat16 \
  "${networks[@]}" "$@"
table unet_bf16 80 python -m benchmarks.unet --dtype=bfloat16 \
  "${networks[@]}" "$@"
table unet_tf32 80 python -m benchmarks.unet "${networks[@]}" "$@"
table augment 40 python -m benchmarks.augment --calls=20 --dtype=bfloat16 "$@"
if has monai; then
  table tiling_bf16 90 python -m benchmarks.tiling --width=64 \
    --dtype=bfloat16 "$@"
fi
if python -c 'import segjax.train' 2>/dev/null; then
  table startup 60 python -m benchmarks.startup --width=64 --rounds=1 "$@"
fi
if has pytest && has xdist; then
  # They compare float32 with numpy's, which TF32 has too few bits for.
  export JAX_DEFAULT_MATMUL_PRECISION=highest
  table tests 120 python -m pytest -n0 "${tests[@]}"
fi
exit $failed
