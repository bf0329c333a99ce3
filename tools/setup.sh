#!/bin/sh
# setup.sh VENV STAMP REQUIREMENT: makes VENV with the newest Python >= 3.11 on the PATH, installs REQUIREMENT under the
# pins of requirements.lock, and writes VENV/STAMP when all is well.
set -eu
venv=$1 stamp=$2 requirement=$3

works() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

if ! works "$venv/bin/python" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=
    for candidate in ${PYTHON:-} python3.14 python3.13 python3.12 python3.11 python3; do
        if works "$candidate"; then python=$candidate; break; fi
    done
    if [ -z "$python" ]; then
        echo "configi needs Python 3.11 or newer; python3 here is $(python3 --version 2>/dev/null || echo missing)." >&2
        exit 1
    fi
    rm -rf "$venv"
    if ! "$python" -m venv "$venv" >/dev/null 2>&1; then
        rm -rf "$venv"
        echo "$python cannot make a virtual environment; install its venv package (Debian: python3-venv)." >&2
        exit 1
    fi
fi
echo "Installing into $venv (once)..." >&2
if ! said=$("$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c requirements.lock -e "$requirement" 2>&1)
then
    echo "$said" >&2
    exit 1
fi
: > "$venv/$stamp"
