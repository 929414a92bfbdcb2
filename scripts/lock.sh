#!/usr/bin/env bash
# Resolve anew what pyproject.toml and requirements-tools.in ask for, and write the three locks. `make lock` calls it.
# The locks hold hashes and no registry address: where packages come from is the machine's business, not the project's.
# Without arguments pins that still fit are kept; `scripts/lock.sh --upgrade` takes the newest of everything.
set -euo pipefail
cd "$(dirname "$0")/.."
compile=("${LOCKER:-.venv-tools/bin/pip-compile}" --quiet --generate-hashes --allow-unsafe --strip-extras --no-header
  --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options "$@")

"${compile[@]}" --output-file requirements.txt pyproject.toml
"${compile[@]}" --extra dev --constraint requirements.txt --output-file requirements-dev.txt pyproject.toml
"${compile[@]}" --output-file requirements-tools.txt requirements-tools.in

if grep -nE '^ *(-i|--index-url|--extra-index-url|--find-links|-f|--trusted-host) |https?://' requirements*.txt; then
  echo "a lock names a registry; see above" >&2
  exit 1
fi
