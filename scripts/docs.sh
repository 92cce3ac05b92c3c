#!/usr/bin/env bash
# Sets up, then builds the documentation into site/; arguments go on to mkdocs, any warning is an error.
#   bash scripts/docs.sh
# Opened as files the site has no search.
set -euo pipefail
case ${1-} in   # the lines above
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' -- "${BASH_SOURCE[0]}"; exit ;;
esac
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh dev
export NO_MKDOCS_2_WARNING=1   # mkdocs-material's notice about another program
.venv/bin/python -m mkdocs build --strict --clean "$@"
echo "To read it: python3 -m http.server -d site, then open http://localhost:8000"
