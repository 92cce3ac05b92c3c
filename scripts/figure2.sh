#!/usr/bin/env bash
# Figure 2 of the paper; the options are those of scripts/reproduce.py.
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/reproduce.sh" figure2 "$@"
