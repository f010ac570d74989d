#!/usr/bin/env bash
# venv.sh PYTHON VENV REQUIREMENT: make VENV unless it works already, and install this checkout into it (editable), with
# the versions that $CONSTRAINTS names; without, or when it is empty, with the newest that pyproject.toml allows.
set -euo pipefail
python=$1 venv=$2 requirement=$3
export PIP_DISABLE_PIP_VERSION_CHECK=1

die() { printf 'pilot-hitl: %s\n' "$*" >&2; exit 1; }

command -v "$python" >/dev/null || die "there is no '$python' here; install Python 3.11 or newer, or name one: make PYTHON=python3.12"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "'$python' is $("$python" --version 2>&1); Python 3.11 or newer is needed: make PYTHON=python3.12"

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    if "$python" -c 'from ensurepip import bootstrap' >/dev/null 2>&1; then
        "$python" -m venv "$venv"
    elif "$python" -m pip --version >/dev/null 2>&1; then
        # Debian splits ensurepip off into python3-venv. A pip outside can put one into the bare environment.
        "$python" -m venv --without-pip "$venv"
        "$python" -m pip --python "$venv/bin/python" install --quiet pip
    elif command -v virtualenv >/dev/null; then
        virtualenv --quiet --python "$python" "$venv"
    else
        die "'$python' can make no virtual environment: ensurepip, pip and virtualenv are all missing." \
            "On Debian or Ubuntu: apt-get install python3-venv; elsewhere any of the three will do."
    fi
fi

versions=()
[[ -z ${CONSTRAINTS:-} ]] || versions=(--constraint "$CONSTRAINTS")
"$venv/bin/python" -m pip install --quiet "${versions[@]}" --editable "$requirement"
