#!/usr/bin/env bash
# Set up, then sample digits with and without ERK-Guid and measure them (minutes).
#   bash scripts/demo.sh [--seeds 0-1499] [--results DIR]
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec .venv/bin/python -m scripts.paper.demo "$@"
