#!/usr/bin/env bash
# Startup script of the nodes that tpu/submit.sh asks for: runs at every boot,
# so a node that comes back goes on with its job.
#
# Usage: none by hand. The node's metadata says where the job lies (onerec-job).
#
# Fetches code and command, installs, and runs the command under
# tpu/supervise.sh. Stands alone: the code is not there yet.
# DRY_RUN=1 prints the commands and runs none.
# -E: the trap below holds inside functions too.
set -Eeuo pipefail
case ${1:-} in
  --help | -h)
    awk 'NR > 1 && !/^#/ {exit} NR > 1 {sub(/^# ?/, ""); print}' "$0"
    exit 0
    ;;
esac
run() {
  if [[ ${DRY_RUN:-0} == 0 ]]; then "$@"; else printf '%q ' "$@" && echo; fi
}

export ONEREC_HOME=${ONEREC_HOME:-/opt/onerec_jax}
export HOME=${HOME:-/root}
# Where TPU images have gcloud.
export PATH=$PATH:/snap/bin
: "${METADATA_URL:=http://metadata.google.internal/computeMetadata/v1/\
instance/attributes}"
job=$(curl -fsS --retry 5 -H 'Metadata-Flavor: Google' \
  "$METADATA_URL/onerec-job")
# Whoever watches the job learns that a node could not begin.
failed() { echo 1 | run gcloud storage cp - "$job/status/startup-$(hostname)"; }
trap failed ERR

run mkdir -p "$ONEREC_HOME"
run gcloud storage cp "$job/code.tar.gz" "$job/command.sh" "$ONEREC_HOME/"
run rm -rf "$ONEREC_HOME/code"
run mkdir "$ONEREC_HOME/code"
run tar -xzf "$ONEREC_HOME/code.tar.gz" -C "$ONEREC_HOME/code"
run bash "$ONEREC_HOME/code/tpu/install.sh"
run cd "$ONEREC_HOME/code"
run exec bash "$ONEREC_HOME/command.sh"
