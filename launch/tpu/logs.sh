#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Shows the log of a worker, 0 if none is given, and what is added to it.
set -euo pipefail
source "$(dirname "$0")/slice.sh"

on_workers "${1:-0}" 'tail -n 100 -F segjax.log'
