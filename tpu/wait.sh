#!/usr/bin/env bash
# Waits until the slices are there: polls every POLL_SECONDS.
#
# Usage: tpu/wait.sh
#
# Exit status 0: they are. 3: they will not come (FAILED), were taken away
# (SUSPENDED, PREEMPTED), or cannot be asked for; the reason and what to do are
# printed. DRY_RUN=1 prints one poll and runs nothing.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"
(($# == 0)) || die "tpu/wait.sh takes no arguments, got: $*. See --help"

load_settings PROJECT ZONE NAME

# fail HINT: what Google Cloud says about it, then what to do.
fail() {
  if [[ $PROVISION == queued ]]; then
    gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" \
      --format='yaml(state)' >&2 || true
  fi
  say "error: $NAME is $state. $1"
  exit 3
}

last='' unanswered=0
while true; do
  if state=$(slice_state); then
    unanswered=0
  else
    unanswered=$((unanswered + 1))
    state=unknown
    ((unanswered < 3)) || fail "Asked 3 times. Is it there? tpu/status.sh; \
to ask for it: tpu/create.sh"
  fi
  if [[ $state != "$last" ]]; then
    say "$(date -u +%H:%M:%S) $NAME: $state"
    last=$state
  fi
  case $state in
    ACTIVE | READY) break ;;
    FAILED)
      fail "The reason is above: no capacity before VALID_UNTIL, no quota, or \
an accelerator that the zone does not have (gcloud compute tpus \
accelerator-types list --zone=$ZONE). Then: tpu/delete.sh && tpu/create.sh"
      ;;
    SUSPENDING | SUSPENDED | PREEMPTED | TERMINATED | STOPPED | STOPPING)
      fail "The capacity was taken back; what was saved in the bucket is safe. \
Ask again: tpu/delete.sh && tpu/create.sh (tpu/submit.sh --watch does so by \
itself)"
      ;;
    DELETING) fail "Somebody deletes it. Then: tpu/create.sh" ;;
    WAITING_FOR_RESOURCES | ACCEPTED | CREATING | PROVISIONING | STARTING | \
      RESTARTING | REIMAGING | REPAIRING | unknown) ;;
    *) fail "No such state is known to tpu/wait.sh. See tpu/status.sh" ;;
  esac
  sleep "$POLL_SECONDS"
done
say "Next: tpu/setup.sh (not needed after tpu/submit.sh)"
