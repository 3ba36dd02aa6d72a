#!/usr/bin/env bash
# Shows the queued resource, the nodes, and how the last jobs ended.
#
# Usage: tpu/status.sh
#
# DRY_RUN=1 prints the commands and runs none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"
(($# == 0)) || die "tpu/status.sh takes no arguments, got: $*. See --help"

load_settings PROJECT ZONE NAME
run gcloud compute tpus queued-resources list "${WHERE[@]}" \
  --filter="name~/$NAME\$"
run gcloud compute tpus tpu-vm list "${WHERE[@]}" \
  --filter="name~/$NAME(-[0-9]+)?\$"
if [[ -n $BUCKET ]]; then
  # One file for each worker that is done; none is no error.
  run gcloud storage cat --display-url "$BUCKET/jobs/$NAME/*/status/*" \
    || say "No worker has ended yet under $BUCKET/jobs/$NAME."
fi
