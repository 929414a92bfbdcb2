#!/usr/bin/env bash
# Resolve anew what pyproject.toml and the requirements*.in ask for, and write the locks. `make lock` calls it.
# The locks hold hashes and no registry address: where packages come from is the machine's business, not the project's.
# Without arguments pins that still fit are kept; `scripts/lock.sh --upgrade` takes the newest of everything.
set -euo pipefail
cd "$(dirname "$0")/.."
compile=("${LOCKER:-.venv-tools/bin/pip-compile}" --quiet --generate-hashes --allow-unsafe --strip-extras --no-header
  --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options)

"${compile[@]}" "$@" --output-file requirements.txt pyproject.toml
"${compile[@]}" "$@" --extra dev --constraint requirements.txt --output-file requirements-dev.txt pyproject.toml
"${compile[@]}" "$@" --output-file requirements-tools.txt requirements-tools.in
"${compile[@]}" "$@" --extra jax --extra plot --constraint requirements-dev.txt \
  --output-file requirements-engines.txt pyproject.toml requirements-engines.in

# The training environment is pinned to the digit, so there is nothing to upgrade. What comes as source alone is written
# apart: it is built by what the other lock installs.
t2t=models/t2t
if [ "$(.venv-tools/bin/python -c 'import sys; print(*sys.version_info[:2])')" != "3 11" ]; then
  echo "$t2t/requirements*.txt are left as they are: that environment's Python is 3.11, .venv-tools has another" >&2
else
  whole="$(mktemp)"
  trap 'rm -f "$whole"' EXIT
  "${compile[@]}" --no-annotate --output-file "$whole" "$t2t/requirements.in"
  awk -F '==' -v wheels="$t2t/requirements.txt" -v sources="$t2t/requirements-source.txt" '
    FNR == NR { if ($0 !~ /^#/) source[$1]; next }
    /^[a-z]/ { out = $1 in source ? sources : wheels }
    { print > out }' "$t2t/requirements-source.in" "$whole"
fi

if grep -nE '^ *(-i|--index-url|--extra-index-url|--find-links|-f|--trusted-host) |https?://' \
  requirements*.txt "$t2t"/requirements*.txt; then
  echo "a lock names a registry; see above" >&2
  exit 1
fi
