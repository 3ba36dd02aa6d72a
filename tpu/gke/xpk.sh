#!/usr/bin/env bash
# Runs a command on GKE through xpk (pip install xpk), on a cluster made by it.
#
# Usage: tpu/gke/xpk.sh COMMAND...
#        tpu/gke/xpk.sh --delete        ends the job
#
# xpk runs the job again after exit status 42 (preempted and saved) by itself.
# DRY_RUN=1 prints the command and runs nothing.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
help_if_asked "$@"
if [[ ${1:-} == --delete ]]; then
  load_settings PROJECT ZONE NAME CLUSTER
  run xpk workload delete "${WHERE[@]}" --cluster="$CLUSTER" \
    --workload="$NAME" --force
  exit 0
fi
[[ ${1:-} != -* ]] || die "unknown option $1. See tpu/gke/xpk.sh --help"
(($# > 0)) || die "no command. Example: tpu/gke/xpk.sh python -m \
onerec_jax.main run --config=experiments/quickstart.py \
--workdir=gs://my-bucket/run1"

load_settings PROJECT ZONE NAME ACCELERATOR CLUSTER IMAGE
load_accelerator
case $CAPACITY in
  spot | on-demand) capacity=--$CAPACITY ;;
  reserved)
    [[ -n $RESERVATION ]] || die "CAPACITY=reserved on GKE needs its name: \
RESERVATION=..."
    capacity=--reservation=$RESERVATION
    ;;
esac
flags=$(libtpu_init_args)
# exec: xpk sends SIGTERM to the shell that it starts, and the program saves.
run xpk workload create "${WHERE[@]}" --cluster="$CLUSTER" \
  --workload="$NAME" --tpu-type="${GCLOUD_TYPE:-$ACCELERATOR}" \
  --num-slices="$SLICES" --docker-image="$IMAGE" "$capacity" \
  --max-restarts="$MAX_RESTARTS" --termination-grace-period-seconds=120 \
  --env=LIBTPU_INIT_ARGS="$flags" --command="exec $(quote "$@")"
