#!/usr/bin/env bash
# Builds the image IMAGE from the working tree, and pushes it.
#
# Usage: tpu/gke/image.sh
#
# Once: gcloud auth configure-docker us-east5-docker.pkg.dev
# DRY_RUN=1 prints the commands and runs none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
help_if_asked "$@"
(($# == 0)) || die "tpu/gke/image.sh takes no arguments, got: $*. See --help"

load_settings IMAGE
run docker build --platform=linux/amd64 -f "$TPU_DIR/Dockerfile" \
  -t "$IMAGE" "$REPO"
run docker push "$IMAGE"
