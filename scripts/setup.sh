#!/usr/bin/env bash
# Makes, completes or repairs .venv in the root of the repository, with the pinned packages.
#   bash scripts/setup.sh        what generate.py, evaluate.py and the demo need
#   bash scripts/setup.sh dev    the same and the tools of the tests
# Where nothing is left to do it returns at once. PYTHON=... chooses the interpreter.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

python=.venv/bin/python
state=.venv.lock   # the lock of two set-ups at once; holds the stage that is under way

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# What must not change between two runs: the interpreter and the pins. The dev stamp holds both
# files, because installing a newer requirements.txt alone makes the dev tools' state unknown.
stamp() {
    "$python" -c 'import sys; print(sys.version)'
    cat requirements.txt
    if [ "$1" = dev ]; then cat requirements-dev.txt; fi
}

ready() {
    [ -x "$python" ] && [ -e ".venv/.installed-$1" ] || return 1
    stamp "$1" 2>/dev/null | cmp -s - ".venv/.installed-$1"
}

# Python itself takes the lock, as macOS has no flock program. The lock belongs to descriptor 9,
# which this shell and its children share: it falls when the last of them ends, even if killed.
take_lock() {
    { exec 9>>"$state"; } 2>/dev/null ||
        fail "cannot write in $PWD: clone the repository where you may write"
    "$1" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null && return
    say "waiting for another set-up of this folder"
    "$1" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
}

usable() {
    "$python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local name
    for name in ${PYTHON:+"$PYTHON"} $([ -n "${PYTHON-}" ] || echo python3 python3.1{3,2,1}); do
        "$name" -c 'import ensurepip, fcntl, sys, venv; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1 && printf '%s\n' "$name" && return
    done
    fail "no ${PYTHON:-python3} of version 3.11 or newer with its venv module was found:" \
        "install one (on Debian and Ubuntu also python3-venv) or name it with PYTHON=/path/to/it"
}

make_venv() {
    say "making .venv with $("$1" -c 'import sys; print("Python", sys.version.split()[0])')"
    echo venv >"$state"
    rm -rf .venv
    "$1" -m venv .venv || fail "python -m venv failed; its message stands above"
}

# uv comes by pip with the version and the hashes that requirements-dev.txt holds for it.
install_uv() {
    local pin
    pin=$(sed -n '/^uv==/,/[^\\]$/p' requirements-dev.txt)
    case "$pin" in "uv==$(.venv/bin/uv --version 2>/dev/null | cut -d' ' -f2) "*) return ;; esac
    "$python" -m pip install -qq --disable-pip-version-check --no-input --no-deps \
        --force-reinstall --require-hashes -r /dev/stdin <<<"$pin" ||
        fail "pip could not install uv: check the network, then run this again"
}

# An install that was cut off may have left half a package that looks whole: all are laid anew.
install_packages() {
    local file=$1 again=$2 quiet=--quiet
    if [ -t 2 ]; then quiet=; fi   # with a screen uv draws its own progress
    say "installing $file into .venv (the first time: minutes, several GB with PyTorch)"
    rm -f .venv/.installed-*
    echo packages >"$state"
    .venv/bin/uv pip install --python "$python" --require-hashes ${quiet:+"$quiet"} \
        ${again:+--reinstall} -r "$file" ||
        fail "the packages could not be installed: check network and disk, then run this again"
    # Editable: notebooks, studies and other folders import erk and metrics from this checkout.
    .venv/bin/uv pip install --python "$python" --no-deps --no-build-isolation --quiet \
        --editable . || fail "this checkout could not be installed into .venv"
}

kind=${1:-base}
case $kind in
    base) file=requirements.txt ;;
    dev) file=requirements-dev.txt ;;
    *) fail "unknown argument '$kind': call it with 'dev' or with none" ;;
esac
if ready "$kind"; then exit 0; fi

interpreter=$(find_python)
take_lock "$interpreter"
if ready "$kind"; then exit 0; fi
unfinished=$(cat "$state")
if [ "$unfinished" = venv ] || ! usable; then
    make_venv "$interpreter"
    unfinished=
fi
install_uv
install_packages "$file" "$unfinished"
if [ "$kind" = dev ]; then stamp dev >.venv/.installed-dev; fi
stamp base >.venv/.installed-base   # requirements-dev.txt holds all of requirements.txt
: >"$state"
say "done"
