#!/usr/bin/env bash
# Brings the working tree to all workers, installs, and counts the devices.
#
# Usage: tpu/setup.sh      after tpu/wait.sh, and again when the code changed
#
# DRY_RUN=1 prints the commands and runs none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"
(($# == 0)) || die "tpu/setup.sh takes no arguments, got: $*. See --help"

load_settings PROJECT ZONE NAME ACCELERATOR
load_vm_accelerator
archive=${TMPDIR:-/tmp}/onerec_jax-$NAME/code.tar.gz
run bash "$TPU_DIR/pack.sh" "$archive"

# shellcheck disable=SC2016 # $HOME is the worker's.
unpack='cd "$HOME" && rm -rf onerec_jax/code && mkdir -p onerec_jax/code &&
 tar -xzf onerec_jax.tar.gz -C onerec_jax/code &&
 bash onerec_jax/code/tpu/install.sh'
# shellcheck disable=SC2329 # each_node calls it.
set_up() {
  run gcloud compute tpus tpu-vm scp "$archive" "$1:onerec_jax.tar.gz" \
    "${WHERE[@]}" --worker=all
  run gcloud compute tpus tpu-vm ssh "$1" "${WHERE[@]}" --worker=all \
    --command="${unpack//$'\n'/}"
}
each_node set_up || die "a worker could not be set up, see above. Once more: \
tpu/setup.sh"

# Fails where a worker or a chip is missing.
count="from onerec_jax import distributed; distributed.initialize(); \
import jax; print(jax.devices()); \
assert jax.device_count() == $((DEVICES * SLICES))"
BUCKET='' MAX_RESTARTS=0 bash "$TPU_DIR/run.sh" python -c "$count"
say "Next: tpu/run.sh python -m onerec_jax.main run --config=... --workdir=..."
