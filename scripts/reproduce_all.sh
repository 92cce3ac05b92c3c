#!/usr/bin/env bash
# All tables and figures, with the options of scripts/reproduce.sh.
#   bash scripts/reproduce_all.sh [--scale digits,mnist] [--budget HOURS] [--num 64] [--dry-run] ...
# A failure does not stop the others; the last line and the exit code report it.
set -euo pipefail
case ${1-} in   # the lines above
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' -- "${BASH_SOURCE[0]}"; exit ;;
esac
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/reproduce.sh" all "$@"
