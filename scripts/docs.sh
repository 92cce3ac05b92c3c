#!/usr/bin/env bash
# Does all set-up, then builds the documentation into site/; any warning is an error.
#   bash scripts/docs.sh
# Opened as files the site has no search.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh dev
export NO_MKDOCS_2_WARNING=1   # mkdocs-material's notice about another program
.venv/bin/python -m mkdocs build --strict --clean "$@"
echo "To read it: python3 -m http.server -d site, then open http://localhost:8000"
