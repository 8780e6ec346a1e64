#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Starts python -m segjax.main with these arguments on every worker. It runs on
# when the connection ends, and writes to ~/segjax.log there. Where it runs
# already nothing happens; where it ended, it goes on from its last checkpoint.
set -euo pipefail
source "$(dirname "$0")/slice.sh"
if [[ $# -eq 0 ]]; then
  echo "usage: $0 --config=CONFIG --workdir=DIR ..." >&2
  exit 2
fi

# The lock is held as long as the run lives.
on_workers all "if ! flock --nonblock segjax.lock true; then
  echo \"\$(hostname): runs already\"
  exit 0
fi
log=\$PWD/segjax.log lock=\$PWD/segjax.lock python=\$PWD/segjax-env/bin/python
cd segjax
nohup setsid flock --nonblock \"\$lock\" \"\$python\" -m segjax.main$(printf ' %q' "$@") >>\"\$log\" 2>&1 </dev/null &
echo \"\$(hostname): started\""
