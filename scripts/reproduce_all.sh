#!/usr/bin/env bash
# All tables and figures, one after the other, with the options of scripts/reproduce.sh.
#   bash scripts/reproduce_all.sh [--scale paper] [--num 64] [--dry-run] ...
# A failure does not stop the others; the last line and the exit code report it.
set -euo pipefail
case ${1-} in   # the lines above
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' -- "${BASH_SOURCE[0]}"; exit ;;
esac
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
