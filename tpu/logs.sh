#!/usr/bin/env bash
# Prints the newest log of a worker from the bucket (uploaded once a minute).
#
# Usage: tpu/logs.sh [--slice=0] [--worker=0] [--follow]
#
# DRY_RUN=1 prints the commands and runs none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"
slice=0 worker=0 follow=false
for option in "$@"; do
  case $option in
    --slice=*) slice=${option#*=} ;;
    --worker=*) worker=${option#*=} ;;
    --follow) follow=true ;;
    *) die "unknown option $option. See tpu/logs.sh --help" ;;
  esac
done

load_settings NAME BUCKET
pattern="$BUCKET/jobs/$NAME/*/logs/s$slice-w$worker-*.log"
# Folders and files are named after their time: the last is the newest.
newest_log() { query "$pattern" gcloud storage ls "$pattern" | tail -n 1; }

log=$(newest_log) || die "no log matches $pattern. Is the job started \
(tpu/status.sh) and older than a minute?"
if ! $follow || dry_run; then
  run gcloud storage cat "$log"
  exit 0
fi
chunk=$(mktemp)
trap 'rm -f "$chunk"' EXIT
offset=0
while true; do
  gcloud storage cat --range="$offset-" "$log" >"$chunk" 2>/dev/null || true
  cat "$chunk"
  offset=$((offset + $(wc -c <"$chunk")))
  sleep "$POLL_SECONDS"
  newest=$(newest_log) || newest=$log
  if [[ $newest != "$log" ]]; then
    say "--- $newest"
    log=$newest offset=0
  fi
done
