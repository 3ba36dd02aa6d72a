#!/usr/bin/env bash
# Runs a command on GKE as a JobSet: all slices begin again together after a
# preemption, at most MAX_RESTARTS times.
#
# Usage: tpu/gke/jobset.sh COMMAND...
#        tpu/gke/jobset.sh --render COMMAND...   prints the YAML only
#        tpu/gke/jobset.sh --delete              ends the job; can be repeated
#
# Works on kubectl's current cluster (gcloud container clusters
# get-credentials CLUSTER); IMAGE comes from tpu/gke/image.sh.
# DRY_RUN=1 prints the commands and runs none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
help_if_asked "$@"
mode=apply
case ${1:-} in
  --render | --delete)
    mode=${1#--}
    shift
    ;;
  -*) die "unknown option $1. See tpu/gke/jobset.sh --help" ;;
esac

if [[ $mode == delete ]]; then
  (($# == 0)) || die "--delete takes no command, got: $*"
  load_settings NAME
  run kubectl delete jobset "$NAME" --ignore-not-found
  exit 0
fi
(($# > 0)) || die "no command. Example: tpu/gke/jobset.sh python -m \
onerec_jax.main run --config=experiments/quickstart.py \
--workdir=gs://my-bucket/run1"
load_settings NAME ACCELERATOR IMAGE
load_accelerator
if [[ $CAPACITY == reserved && -z $RESERVATION ]]; then
  die "CAPACITY=reserved on GKE needs its name: RESERVATION=..."
fi
flags=$(libtpu_init_args)
yaml=$(python3 "$TPU_DIR/gke/render.py" --name="$NAME" --image="$IMAGE" \
  --gke-accelerator="$GKE_ACCELERATOR" --topology="$TOPOLOGY" \
  --slices="$SLICES" --hosts="$HOSTS" --chips-per-host="$CHIPS_PER_HOST" \
  --capacity="$CAPACITY" --reservation="$RESERVATION" \
  --max-restarts="$MAX_RESTARTS" --env=LIBTPU_INIT_ARGS="$flags" -- "$@")
if [[ $mode == render ]]; then
  printf '%s\n' "$yaml"
  exit 0
fi
run kubectl apply -f - <<<"$yaml"
say "Look: kubectl get jobset $NAME; kubectl logs -f --prefix -l \
jobset.sigs.k8s.io/jobset-name=$NAME. End: tpu/gke/jobset.sh --delete"
