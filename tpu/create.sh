#!/usr/bin/env bash
# Asks for the slices that tpu/env describes; tpu/wait.sh waits for them.
#
# Usage: tpu/create.sh [GCLOUD_FLAG...]    e.g. tpu/create.sh --labels=team=rec
#
# PROVISION=queued (default): a queued resource of SLICES slices.
# PROVISION=direct: one TPU VM slice, at once or not at all.
# DRY_RUN=1 prints the commands and runs none. Teardown: tpu/delete.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"

load_settings PROJECT ZONE NAME ACCELERATOR
load_vm_accelerator
[[ -z $BUCKET ]] || check_bucket_region
request_slices "$@"
say "Asked for $SLICES x $ACCELERATOR ($CAPACITY). Next: tpu/wait.sh"
