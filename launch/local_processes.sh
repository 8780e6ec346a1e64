#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs a command in N processes on this machine's CPU, as one run:
#
#   launch/local_processes.sh 2 python -m segjax.main --config=CONFIG
#
# JAX_NUM_CPU_DEVICES=4 gives each process four devices. If a process fails, its
# status is returned, and those that run ten seconds later are killed: they wait
# for it. SIGTERM and SIGINT go to all.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 NUM_PROCESSES COMMAND ..." >&2
  exit 2
fi
count=$1
shift

port=$(python3 -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
export JAX_PLATFORMS=cpu JAX_NUM_PROCESSES=$count
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port

pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((index = 0; index < count; index++)); do
  echo "+ JAX_PROCESS_ID=$index $*" >&2
  JAX_PROCESS_ID=$index "$@" &
  pids+=($!)
done

failed=0
while ((${#pids[@]})); do
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2>/dev/null && continue
    status=0
    wait "${pids[i]}" || status=$?
    unset "pids[i]"
    if ((status && !failed)); then
      failed=$status
      deadline=$((SECONDS + 10))
    fi
  done
  if ((failed && SECONDS > deadline && ${#pids[@]})); then
    kill -KILL "${pids[@]}" 2>/dev/null || true
  fi
  sleep 0.1
done
exit "$failed"
