#!/usr/bin/env bash
# Packs the working tree for the workers: what git knows or could add, with
# changes that are not committed; nothing that .gitignore names.
#
# Usage: tpu/pack.sh ARCHIVE.tar.gz
#
# DRY_RUN=1 prints the command and runs nothing.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"
(($# == 1)) || die "expected tpu/pack.sh ARCHIVE.tar.gz, got: $*"
archive=$1

git -C "$REPO" rev-parse --git-dir >/dev/null 2>&1 || die "$REPO is no git \
checkout, so what belongs to the program is not known. There: git init"
run mkdir -p "$(dirname "$archive")"
list_files() {
  local file
  git -C "$REPO" ls-files -z --cached --others --exclude-standard \
    | while IFS= read -r -d '' file; do
      # Deleted, but not yet for git.
      [[ ! -e $REPO/$file ]] || printf '%s\0' "$file"
    done
}
if dry_run; then
  run tar -C "$REPO" -czf "$archive" --null --files-from=-
else
  list_files | tar -C "$REPO" -czf "$archive" --null --files-from=-
fi
