#!/usr/bin/env bash
# Gives the slices back: the queued resource with its nodes, or the TPU VM.
#
# Usage: tpu/delete.sh
#
# Can be repeated; nothing there is no error. Buckets and images stay.
# DRY_RUN=1 prints the commands and runs none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"
(($# == 0)) || die "tpu/delete.sh takes no arguments, got: $*. See --help"

load_settings PROJECT ZONE NAME
delete_slices --async
say "Check that nothing is left to pay for: tpu/status.sh"
