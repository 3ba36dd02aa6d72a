#!/usr/bin/env bash
# On a worker: makes the virtual environment, once for each set of requirements.
#
# Usage: tpu/install.sh       (called by tpu/setup.sh and tpu/startup.sh)
#
# ONEREC_HOME (default ~/onerec_jax) holds code/, venv/ and logs/.
# DRY_RUN=1 prints the commands and runs none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"
venv=${ONEREC_HOME:-$HOME/onerec_jax}/venv

wanted=$(cat "$REPO/requirements.txt" "$TPU_DIR/requirements.txt" | sha256sum)
if [[ -f $venv/installed && $(<"$venv/installed") == "$wanted" ]]; then
  say "$venv is up to date."
  exit 0
fi

# The first interpreter that the program supports and that can make a venv.
usable_python() {
  local candidate
  for candidate in python3.13 python3.12 python3.11 python3; do
    if "$candidate" -c 'import ensurepip, sys
sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
}

run rm -rf "$venv"
python=$(usable_python)
if [[ -n $python ]]; then
  run "$python" -m venv "$venv"
else
  # TPU images of 2024 have Python 3.10; uv brings its own.
  # Newer ones guard the system's Python (PEP 668), which uv does not touch.
  run env PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  run python3 -m uv venv --seed --python 3.12 "$venv"
fi
run "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  -r "$TPU_DIR/requirements.txt"
# Last, so that an installation that broke off is done again.
dry_run || printf '%s\n' "$wanted" >"$venv/installed"
