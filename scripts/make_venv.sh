#!/bin/sh
# make_venv.sh PYTHON FOLDER: a virtual environment, or one line that says what the machine lacks.
set -eu
python=$1
venv=$2

fail() {
    echo "make: $*" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 ||
    fail "no $python found; install Python 3.11 or newer, or name one: make install PYTHON=python3.12"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is Python $version, 3.11 or newer is needed: make install PYTHON=python3.12"

# Debian and Ubuntu ship venv without the part that puts pip into it.
if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "make: installing python$version-venv"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "python$version-venv" >/dev/null
    else
        fail "$python can't make virtual environments; on Debian or Ubuntu: sudo apt-get install python$version-venv"
    fi
fi

# One whose Python has gone, or that was copied without it, is beyond mending.
if [ -e "$venv" ] && ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$venv"
fi
"$python" -m venv "$venv"
