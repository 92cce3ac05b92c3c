#!/usr/bin/env bash
# Set up, then reproduce a table or figure of the paper with all cores or GPUs.
#   bash scripts/reproduce.sh table2 [--scale mnist] [--num 64] [--dry-run] ... (--help lists all)
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec .venv/bin/python -m scripts.paper.reproduce --processes auto "$@"
