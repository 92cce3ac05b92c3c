#!/usr/bin/env bash
# All tables and figures, one after the other; the options are those of scripts/paper/reproduce.py.
# What fails does not stop the others; the exit code and the last line tell.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

failed=()
for config in $(ls configs/table*.yaml | sort -V) $(ls configs/fig*.yaml | sort -V); do
    name=$(basename "$config" .yaml)
    bash scripts/reproduce.sh "$name" "$@" || failed+=("$name")
done
if [ ${#failed[@]} -gt 0 ]; then
    printf 'not made: %s\n' "${failed[*]}" >&2
    exit 1
fi
