#!/bin/sh
# Measures vmmd's speed and size against bare references, in one run, and prints one table.
# VMMD_BENCH_SEED repeats a run's order and choices; VMMD_BENCH_DIR is where the disk to measure is (default /var/tmp).
set -eu
cd "$(dirname "$0")/../.."
contrib/deps.sh bench
exec "${PYTHON:-/usr/bin/python3}" tests/bench/bench.py "$@"
