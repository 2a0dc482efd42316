#!/usr/bin/env bash
# Makes .venv and installs this clone into it (editable, versions from constraints.txt).
#   bash tools/install.sh [EXTRAS]     EXTRAS: optional-dependency groups of pyproject.toml, e.g. dev,data
# Does nothing if that is already done for these very files.
set -euo pipefail
cd "$(dirname "$0")/.."
extras="${1:-}"

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

make_venv() {
    local python
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        if new_enough "$python"; then
            "$python" -m venv .venv || { echo "install: '$python -m venv' failed (on Debian: apt install python3-venv)" >&2; exit 1; }
            return
        fi
    done
    echo "install: no Python 3.11 or newer found; python3 is $(python3 --version 2>&1 || true)" >&2
    exit 1
}

[ -x .venv/bin/python ] || make_venv
new_enough .venv/bin/python || { echo "install: .venv has $(.venv/bin/python --version), 3.11 or newer is needed; remove .venv and run again" >&2; exit 1; }

stamp=".venv/installed${extras:+-$extras}"
key="$(cat constraints.txt pyproject.toml setup.py tools/install.sh megatron_lite/*/csrc/*.* | .venv/bin/python -c \
    'import hashlib, os, sys; print(hashlib.sha256(sys.stdin.buffer.read() + os.getcwd().encode() + sys.version.encode()).hexdigest())')"
# The compiled modules are looked for too: `git clean` takes them away and leaves .venv standing.
built() { for module in $(grep -o 'megatron_lite\.[a-z]*\._[a-z]*' setup.py); do compgen -G "${module//.//}.*.so" || return; done; }
if [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] && built >/dev/null; then
    exit 0
fi
command -v c++ >/dev/null || command -v g++ >/dev/null || { echo "install: no C++ compiler found (on Debian: apt install g++)" >&2; exit 1; }

pip_install() { .venv/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt "$@"; }
pip_install torch==2.13.0                 # first and by itself, so that a CPU build on disk is taken where there is one
pip_install setuptools wheel pybind11     # the build uses these pinned ones, not an isolated set of the day's newest
pip_install --no-build-isolation --editable ".${extras:+[$extras]}"
# A CUDA build of torch brings the Triton it was made with; a CPU build none, and tests interpret and compile kernels.
if [[ ",$extras," == *,dev,* ]] && ! .venv/bin/python -c 'import triton' 2>/dev/null; then
    pip_install --no-deps triton==3.9.0
fi
echo "$key" >"$stamp"
