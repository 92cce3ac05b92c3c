#!/usr/bin/env bash
# Set up, then sample MNIST digits plain, with ERK-Guid and with auto, and measure (minutes).
#   bash scripts/demo.sh [--seeds 0-999] [--results DIR]
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec .venv/bin/python -m scripts.paper.demo "$@"
