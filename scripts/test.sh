#!/usr/bin/env bash
# Sets up, then runs the tests; arguments go on to pytest.
#   bash scripts/test.sh                     all but the slow ones
#   bash scripts/test.sh --all               the slow ones too
#   bash scripts/test.sh tests/io/test_download.py -k resume
set -euo pipefail
case ${1-} in   # the lines above
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' -- "${BASH_SOURCE[0]}"; exit ;;
esac
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh dev

select=(-m "not slow")
arguments=()
for argument in "$@"; do
    case $argument in
        --all) select=(-m "slow or not slow") ;;
        *) arguments+=("$argument") ;;
    esac
done

# One process a core, four at most (each holds a PyTorch), and one thread in each.
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
unset PYTHONDONTWRITEBYTECODE   # else each of some hundred processes compiles PyTorch's sources again
.venv/bin/python -m pytest -n "$((cores < 4 ? cores : 4))" "${select[@]}" \
    ${arguments[@]+"${arguments[@]}"}
# What needs a GPU, in one process; that none of it may be among the arguments is pytest's code 5.
if [ -e /dev/nvidiactl ] || [ -e /dev/dxg ]; then
    .venv/bin/python -m pytest ${arguments[@]+"${arguments[@]}"} -m gpu || [ $? = 5 ]
fi
