#!/usr/bin/env bash
# Asks for slices that run a command by themselves, from their first boot on.
#
# Usage: tpu/submit.sh [--watch] COMMAND...
#
#   tpu/submit.sh --watch python -m onerec_jax.main run \
#     --config=experiments/quickstart.py --workdir=gs://my-bucket/run1
#
# Code and command go to BUCKET/jobs/NAME/TIME, logs and exit statuses come
# back there (tpu/logs.sh, tpu/status.sh). A worker that reboots goes on.
# --watch stays: asks for new slices when spot capacity is taken back, deletes
# them when all workers are done, and ends with the largest exit status; 3 when
# the slices were lost more than MAX_RESTARTS times.
# DRY_RUN=1 prints the commands and runs none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"
watch=false
case ${1:-} in
  --watch)
    watch=true
    shift
    ;;
  -*) die "unknown option $1. See tpu/submit.sh --help" ;;
esac
(($# > 0)) || die "no command. Example: tpu/submit.sh python -m \
onerec_jax.main run --config=experiments/quickstart.py \
--workdir=gs://my-bucket/run1"

load_settings PROJECT ZONE NAME ACCELERATOR BUCKET
load_vm_accelerator
check_bucket_region
job=$(job_folder)
parcel=${TMPDIR:-/tmp}/onerec_jax-$NAME

run bash "$TPU_DIR/pack.sh" "$parcel/code.tar.gz"
command=$(job_command "$job" "$@")
dry_run || printf '%s\n' '# Written by tpu/submit.sh.' "exec $command" \
  >"$parcel/command.sh"
run gcloud storage cp "$parcel/code.tar.gz" "$parcel/command.sh" "$job/"

request() {
  request_slices --metadata=onerec-job="$job" \
    --metadata-from-file=startup-script="$TPU_DIR/startup.sh"
}
request
say "Job: $job. Look: tpu/status.sh, tpu/logs.sh --follow. End: tpu/delete.sh"
$watch || exit 0

# Exit statuses of the workers that are done, one a line; none is no error.
statuses() {
  local all_done
  printf -v all_done '0\n%.0s' $(seq $((HOSTS * SLICES)))
  query "$all_done" gcloud storage cat "$job/status/*" 2>/dev/null || true
}
lost=0 unanswered=0
while true; do
  ended=$(statuses)
  worst=$(sort -n <<<"$ended" | tail -n 1)
  # One that failed is enough: the others cannot go on without it.
  if [[ -n $worst ]] && { ((worst > 0)) \
    || (($(wc -l <<<"$ended") == HOSTS * SLICES)); }; then
    say "Ended with $worst."
    delete_slices --async
    exit "$worst"
  fi
  if state=$(slice_state); then
    unanswered=0
  else
    unanswered=$((unanswered + 1))
    ((unanswered < 10)) || die "no answer about $NAME, 10 times. Its slices \
may run and cost: tpu/status.sh, tpu/delete.sh"
  fi
  case $state in
    FAILED | SUSPENDING | SUSPENDED | PREEMPTED | TERMINATED | STOPPED)
      lost=$((lost + 1))
      say "$NAME is $state ($lost of at most $MAX_RESTARTS)."
      # Waits for the end of the deletion: the name is needed again.
      delete_slices
      if ((lost > MAX_RESTARTS)); then
        say "error: given up. What was saved is in the bucket; to go on: the \
same command again."
        exit 3
      fi
      request
      ;;
  esac
  sleep "$POLL_SECONDS"
done
