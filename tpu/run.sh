#!/usr/bin/env bash
# Runs a command on all workers of all slices, and again after a preemption.
#
# Usage: tpu/run.sh [--detach] COMMAND...
#        tpu/run.sh --stop         ends it: SIGTERM, save, exit
#
#   tpu/run.sh python -m onerec_jax.main run \
#     --config=experiments/quickstart.py --workdir=gs://my-bucket/run1
#
# Prints the output of all workers and ends with the largest of their exit
# statuses. The command outlives a lost connection; --detach does not wait at
# all. With BUCKET set, logs go there: tpu/logs.sh.
# DRY_RUN=1 prints the commands and runs none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"
detach=false
case ${1:-} in
  --detach)
    detach=true
    shift
    ;;
  --stop) (($# == 1)) || die "--stop takes no command, got: ${*:2}" ;;
  -*) die "unknown option $1. See tpu/run.sh --help" ;;
esac
(($# > 0)) || die "no command. Example: tpu/run.sh python -m onerec_jax.main \
run --config=experiments/quickstart.py --workdir=gs://my-bucket/run1"

load_settings PROJECT ZONE NAME ACCELERATOR
load_vm_accelerator
command=$(job_command "$(job_folder)" "$@")
if $detach; then
  command="setsid -f $command </dev/null >/dev/null 2>&1"
fi
command="cd ~/onerec_jax/code || { echo 'no code here: tpu/setup.sh' >&2; \
exit 2; }; $command"

outputs=$(mktemp -d)
trap 'rm -rf "$outputs"' EXIT
# shellcheck disable=SC2329 # each_node calls it.
start() {
  run gcloud compute tpus tpu-vm ssh "$1" "${WHERE[@]}" --worker=all \
    --command="$command" | tee "$outputs/$1"
}
worst=0
each_node start || worst=$?
if dry_run || $detach || [[ $1 == --stop ]]; then exit "$worst"; fi

# gcloud ends with the status of one of the workers that failed.
while read -r status; do
  ((status <= worst)) || worst=$status
done < <(sed -n 's/.*\[supervise\] exit status \([0-9]*\)$/\1/p' "$outputs"/*)
case $worst in
  0) ;;
  42) say "Stopped and saved. To go on: the same command again." ;;
  255) say "error: a connection was lost, the command may still run there: \
tpu/logs.sh --follow; tpu/run.sh --stop ends it." ;;
  *) say "error: the largest exit status of the workers is $worst." ;;
esac
exit "$worst"
