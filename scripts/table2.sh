#!/usr/bin/env bash
# Table 2 of the paper; the options are those of scripts/paper/reproduce.py.
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/reproduce.sh" table2 "$@"
