#!/bin/sh
# A stage on Cloud TPU VMs: create, install, run on all workers, stop, fetch, delete.
#
#   export PROJECT=my-project ZONE=us-west4-a NAME=rlaif TYPE=v5litepod-16
#   export BUCKET=gs://my-bucket            # mounted on every worker: data and runs
#
# The bucket, made once; where it has folders of its own, a checkpoint is renamed in one
# step, otherwise file by file:
#
#   gcloud storage buckets create $BUCKET --location=us-west4 \
#     --uniform-bucket-level-access --enable-hierarchical-namespace
#
#   launch/tpu_vm.sh create
#   launch/tpu_vm.sh install
#   launch/tpu_vm.sh run configs/ppo.py:7b,layout=v5e-16 [flags]
#   launch/tpu_vm.sh stop                   # Ctrl-C here does not reach the workers
#   launch/tpu_vm.sh fetch runs/7b/ppo      # from the bucket to here
#   launch/tpu_vm.sh delete
#
# `launch/tpu_vm.sh --dry-run COMMAND ...` prints every command and runs none. All workers
# run one program; JAX finds the others by itself. A run that was stopped goes on from its
# last checkpoint with the same command. TYPE is v5litepod-16 for --target v5e:4x4,
# v5p-16 for v5p:2x2x2, v6e-8 for v6e:2x4, v5litepod-256 for v5e:16x16. Flags of `run`
# pass through two shells: quote twice what has brackets or spaces.
set -eu

run=''
if [ "${1:-}" = --dry-run ]; then
  run=echo
  shift
fi
command=${1:-}
[ $# -gt 0 ] && shift
for name in PROJECT ZONE NAME TYPE BUCKET; do
  eval "value=\${$name:-}"
  if [ -z "$value" ]; then
    echo "error: $name is not set; see the head of launch/tpu_vm.sh" >&2
    exit 2
  fi
done
cd "$(dirname "$0")/.."

case $TYPE in
  v5litepod-*) default=v2-alpha-tpuv5-lite ;;
  v5p-*) default=v2-alpha-tpuv5 ;;
  v6e-*) default=v2-alpha-tpuv6e ;;
  *) default=tpu-ubuntu2204-base ;;
esac
version=${VERSION:-$default}
where="--project=$PROJECT --zone=$ZONE"
tpu="gcloud compute tpus tpu-vm"

everywhere() {
  $run $tpu ssh "$NAME" $where --worker=all --command="$1"
}

case $command in
  create)
    $run $tpu create "$NAME" $where --accelerator-type="$TYPE" --version="$version" \
      ${SPOT:+--spot}
    ;;
  install)
    # Data and weights are those of the bucket.
    $run tar --exclude=./data --exclude=./checkpoints --exclude=./runs --exclude=./.git -czf /tmp/vlm-rlaif-jax.tgz .
    $run $tpu scp /tmp/vlm-rlaif-jax.tgz "$NAME:" $where --worker=all
    everywhere 'mkdir -p vlm-rlaif-jax && tar -xzf vlm-rlaif-jax.tgz -C vlm-rlaif-jax'
    everywhere 'sudo apt-get update -q && sudo apt-get install -yq python3.11-venv'
    everywhere "python3.11 -m venv env && env/bin/pip install -q -e './vlm-rlaif-jax[tpu]'"
    everywhere 'command -v gcsfuse || (echo "deb https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list && curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo apt-key add - && sudo apt-get update -q && sudo apt-get install -yq gcsfuse)'
    everywhere "mkdir -p bucket && (mountpoint -q bucket || gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 ${BUCKET#gs://} bucket)"
    ;;
  run)
    if [ $# -lt 1 ]; then
      echo 'error: name a config: launch/tpu_vm.sh run configs/ppo.py:7b,layout=v5e-16' >&2
      exit 2
    fi
    config=$1
    shift
    everywhere "cd vlm-rlaif-jax && ln -sfn ../bucket/data data && ln -sfn ../bucket/checkpoints checkpoints && ../env/bin/python -m launch.train --coordinator=auto --config $config --workdir=../bucket/runs $*"
    ;;
  stop)
    # A lost connection, or Ctrl-C here, reaches no worker. They save and end.
    everywhere "pkill -INT -f 'python -m [l]aunch.train' || true"
    ;;
  fetch)
    $run mkdir -p "${1:-runs}"
    $run gcloud storage rsync -r "$BUCKET/${1:-runs}" "${1:-runs}"
    ;;
  delete)
    $run $tpu delete "$NAME" $where --quiet
    ;;
  *)
    echo 'error: choose one of create, install, run, stop, fetch, delete' >&2
    exit 2
    ;;
esac
