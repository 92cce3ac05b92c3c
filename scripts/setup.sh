#!/usr/bin/env bash
# Creates, completes or repairs .venv in the root of the repository: the pinned packages, and this
# checkout installed in editable mode, so that notebooks, studies and other folders import it.
#   bash scripts/setup.sh        what the command erk and the demo need
#   bash scripts/setup.sh dev    also the tools of the tests
# A complete .venv is left alone, within a moment. PYTHON=... chooses the interpreter.
set -euo pipefail
case ${1-} in   # the lines above
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' -- "${BASH_SOURCE[0]}"; exit ;;
esac
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

python=.venv/bin/python
state=.venv.lock   # the lock between two set-ups; it contains the stage that is not finished

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# The packages are complete for this interpreter and these pins. The dev stamp holds both files:
# installing a newer requirements.txt alone leaves the state of the dev tools unknown.
stamp_packages() {
    "$python" -c 'import sys; print(sys.version)'
    cat requirements.txt
    if [ "$1" = dev ]; then cat requirements-dev.txt; fi
}

# The checkout is installed for this folder, and with these commands, packages and this version.
stamp_checkout() {
    pwd
    cat pyproject.toml setup.py
    grep '^__version__' erk/__init__.py
}

packages_ready() {
    [ -x "$python" ] && [ -e ".venv/.installed-$1" ] || return 1
    stamp_packages "$1" 2>/dev/null | cmp -s - ".venv/.installed-$1"
}

checkout_ready() {
    [ -x .venv/bin/erk ] && compgen -G '.venv/lib/python3*/site-packages/erk_guid-*.dist-info' \
        >/dev/null || return 1
    stamp_checkout 2>/dev/null | cmp -s - .venv/.installed-checkout
}

ready() { packages_ready "$1" && checkout_ready; }

# Python takes the lock, as macOS has no flock program. The lock belongs to file descriptor 9, which
# this shell and its children share: it is released when the last of them ends, even if killed.
take_lock() {
    { exec 9>>"$state"; } 2>/dev/null ||
        fail "cannot write in $PWD: clone the repository into a folder that you may write to"
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
    fail "there is no ${PYTHON:-python3} of version 3.11 or newer with its venv module: install" \
        "one (on Debian and Ubuntu also python3-venv) or name it with PYTHON=/path/to/it"
}

make_venv() {
    say "creating .venv with $("$1" -c 'import sys; print("Python", sys.version.split()[0])')"
    echo venv >"$state"
    rm -rf .venv
    "$1" -m venv .venv || fail "python -m venv failed; see its message above"
}

# pip installs uv with the version and the hashes of requirements-dev.txt.
install_uv() {
    local pin
    pin=$(sed -n '/^uv==/,/[^\\]$/p' requirements-dev.txt)
    case "$pin" in "uv==$(.venv/bin/uv --version 2>/dev/null | cut -d' ' -f2) "*) return ;; esac
    "$python" -m pip install -qq --disable-pip-version-check --no-input --no-deps \
        --force-reinstall --require-hashes -r /dev/stdin <<<"$pin" ||
        fail "pip could not install uv: check the network, then run this again"
}

# An interrupted installation may have left incomplete packages: then all are installed again.
install_packages() {
    local kind=$1 file=$2 again=$3 quiet=--quiet
    if [ -t 2 ]; then quiet=; fi   # on a terminal uv shows its progress
    say "installing $file into .venv (the first time: minutes, several GB with PyTorch)"
    rm -f .venv/.installed-*
    echo packages >"$state"
    .venv/bin/uv pip install --python "$python" --require-hashes ${quiet:+"$quiet"} \
        ${again:+--reinstall} -r "$file" ||
        fail "the packages could not be installed: check network and disk, then run this again"
    if [ "$kind" = dev ]; then stamp_packages dev >.venv/.installed-dev; fi
    stamp_packages base >.venv/.installed-base   # requirements-dev.txt holds requirements.txt
    : >"$state"
}

# Needs no network: setuptools, which builds the package, is among the pinned packages.
install_checkout() {
    rm -f .venv/.installed-checkout
    .venv/bin/uv pip install --python "$python" --offline --quiet --no-deps --no-build-isolation \
        --editable . || fail "this checkout could not be installed into .venv; see above"
    stamp_checkout >.venv/.installed-checkout
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
if ! packages_ready "$kind"; then install_packages "$kind" "$file" "$unfinished"; fi
if ! checkout_ready; then install_checkout; fi
say "done"
