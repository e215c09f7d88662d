#!/bin/sh
# One stage on one host with eight A100s (80 GB), or H100s, or H200s.
#
#   launch/a100x8.sh configs/ppo.py:7b,layout=a100x8 --workdir=/data/runs [flags]
#   launch/a100x8.sh --dry-run configs/ppo.py:7b,layout=a100x8
#
# Several such hosts are one run: on host i of n, with host 0 reachable at HOST:1234,
#
#   HOSTS=n HOST_INDEX=i COORDINATOR=HOST:1234 launch/a100x8.sh configs/... [flags]
#
# with workdir, data and checkpoints on storage that all see. Compiled programs are kept
# between such runs where JAX_COMPILATION_CACHE_DIR names a folder there, too.
set -eu

run=''
if [ "${1:-}" = --dry-run ]; then
  run=echo
  shift
fi
if [ $# -lt 1 ]; then
  echo 'error: name a config: launch/a100x8.sh configs/ppo.py:7b,layout=a100x8' >&2
  exit 2
fi
config=$1
shift
cd "$(dirname "$0")/.."

# The memory that launch.plan counts with: 0.92 of the card, taken once at the start.
XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
# Collectives overlap with arithmetic.
XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_latency_hiding_scheduler=true"
export XLA_PYTHON_CLIENT_MEM_FRACTION XLA_FLAGS

if [ -n "${COORDINATOR:-}" ]; then
  set -- "--coordinator=$COORDINATOR" "--processes=$HOSTS" "--process=$HOST_INDEX" "$@"
fi
if [ -n "$run" ]; then
  echo "XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION"
  echo "XLA_FLAGS=$XLA_FLAGS"
fi
$run python3 -m launch.train --config "$config" "$@"
