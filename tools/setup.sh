#!/bin/sh
# setup.sh VENV STAMP LOCK...: makes VENV with the newest Python >= 3.11 on the PATH, installs what each LOCK lists and
# nothing else, every file checked against its sha256, and writes VENV/STAMP when all is well. requirements.lock brings
# configi itself with it, built by the backend that the lock holds.
set -eu
venv=$1 stamp=$2
shift 2

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
pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
project=no
for lock in "$@"; do
    [ "$lock" = requirements.lock ] && project=yes
    shift
    set -- "$@" --requirement "$lock"
done
install() {
    pip install --require-hashes --only-binary :all: "$@" || return
    [ "$project" = no ] || pip install --no-deps --no-build-isolation --editable .
}
if ! said=$(install "$@" 2>&1)
then
    echo "$said" >&2
    exit 1
fi
: > "$venv/$stamp"
