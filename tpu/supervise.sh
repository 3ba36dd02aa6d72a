#!/usr/bin/env bash
# On a worker: runs a command until it is done, again after a preemption.
#
# Usage: tpu/supervise.sh COMMAND...   (called by tpu/run.sh, tpu/startup.sh)
#        tpu/supervise.sh --stop       stops it: SIGTERM, save, exit
#
# COMMAND runs again when its exit status is 42 (preempted and saved) or 128 and
# more (killed, as when another worker is lost), MAX_RESTARTS times; all others
# are final. SIGTERM goes on to COMMAND, which saves; then this ends too.
# JOB=gs://...: there go the log and, when all is over, the exit status.
# DRY_RUN=1 prints the command and runs nothing.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"
(($# > 0)) || die "no command. Usage: tpu/supervise.sh COMMAND..."

home=${ONEREC_HOME:-$HOME/onerec_jax}
job=${JOB:-}
: "${MAX_RESTARTS:=0}" "${RESTART_SECONDS:=10}" "${UPLOAD_SECONDS:=60}"
: "${METADATA_URL:=http://metadata.google.internal/computeMetadata/v1/\
instance/attributes}"
pid_file=$home/supervise.pid

# A machine that died leaves a number that may now be another process's.
running() {
  [[ -f $pid_file ]] \
    && grep -aqs supervise.sh "/proc/$(<"$pid_file")/cmdline"
}

if [[ $1 == --stop ]]; then
  running || exit 0
  run kill -TERM "$(<"$pid_file")"
  while ! dry_run && running; do sleep 0.2; done
  exit 0
fi
if running; then
  die "a job is running on this worker, and a TPU serves one. Stop it: \
tpu/run.sh --stop; look at it: tpu/logs.sh --follow"
fi
if dry_run; then
  run "$@"
  exit 0
fi
# Who keeps a copy of standard output open keeps the connection open.
exec 3>&-

# s0-w3: slice 0, worker 3; stable when a node is made anew.
attribute() {
  curl -fsS --retry 3 -H 'Metadata-Flavor: Google' "$METADATA_URL/$1"
}
slice=$(attribute tpu-env \
  | sed -n "s/^MEGASCALE_SLICE_ID: *'\\?\\([0-9]*\\).*/\\1/p")
worker=s${slice:-0}-w$(attribute agent-worker-number)

mkdir -p "$home/logs"
log=$home/logs/$worker-$(date -u +%Y%m%d-%H%M%S)-$$.log
note() { printf '[supervise] %s\n' "$1" >>"$log"; }

# A reboot after the end must not run the job again.
if [[ -n $job ]] \
  && ended=$(gcloud storage cat "$job/status/$worker" 2>/dev/null); then
  say "[supervise] $worker has ended already, exit status $ended"
  exit "$ended"
fi
echo $$ >"$pid_file"
trap 'rm -f "$pid_file"' EXIT

# The program writes to a file, which others read: a lost connection must not
# end it with SIGPIPE.
trap '' HUP
shown=0  # bytes of the log that were printed
upload_log() { gcloud storage cp "$log" "$job/logs/" >/dev/null 2>&1; }
uploader=
if [[ -n $job ]]; then
  while sleep "$UPLOAD_SECONDS"; do
    upload_log || true
  done </dev/null >/dev/null 2>&1 &
  uploader=$!
fi

child='' stopping=false
# shellcheck disable=SC2329 # The trap calls it.
forward() {
  signalled=true stopping=true
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}
trap forward TERM INT

PATH=$home/venv/bin:$PATH
export PYTHONUNBUFFERED=1
restarts=0
while true; do
  note "$worker: $(quote "$@")"
  "$@" >>"$log" 2>&1 &
  child=$!
  # SIGTERM came before the program was known.
  if $stopping; then kill -TERM "$child" 2>/dev/null || true; fi
  tail -c "+$((shown + 1))" -s 0.2 --pid="$child" -f "$log" 2>/dev/null &
  viewer=$!
  # A trap ends `wait` early, with a status that is not the child's.
  while true; do
    signalled=false status=0
    wait "$child" || status=$?
    $signalled || break
  done
  child=''
  wait "$viewer" || true
  shown=$(wc -c <"$log")
  final=true
  if ((status != 42 && status < 128)); then
    break
  elif $stopping; then
    note "asked to stop; to go on: the same command again"
    final=false
    break
  elif ((restarts >= MAX_RESTARTS)); then
    note "ended with $status after $restarts restarts, the most allowed"
    break
  fi
  restarts=$((restarts + 1))
  note "ended with $status; restart $restarts of at most $MAX_RESTARTS"
  sleep "$RESTART_SECONDS" || true
  # SIGTERM while no program was running.
  if $stopping; then
    final=false
    break
  fi
done

note "exit status $status"
tail -c "+$((shown + 1))" "$log" 2>/dev/null || true
if [[ -n $job ]]; then
  kill "$uploader" 2>/dev/null || true
  upload_log || say "[supervise] the log did not reach $job: $log"
  if $final; then
    printf '%s\n' "$status" | gcloud storage cp - "$job/status/$worker" \
      >/dev/null 2>&1 || say "[supervise] the status did not reach $job"
  fi
fi
exit "$status"
