#!/usr/bin/env bash
# All tables and figures, one after the other, with the options of scripts/paper/reproduce.py.
# A failure does not stop the others; the last line and the exit code report it.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

failed=()
for config in $(ls configs/table*.yaml | sort -V) $(ls configs/fig*.yaml | sort -V); do
    name=$(basename "$config" .yaml)
    bash scripts/reproduce.sh "$name" "$@" || failed+=("$name")
done
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[*]}" >&2
    exit 1
fi
