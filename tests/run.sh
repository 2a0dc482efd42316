#!/usr/bin/env bash
# Installs what the tests need into .venv (once) and runs them; arguments go on to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/install.sh dev,data
export OMP_NUM_THREADS=1 # many ranks share the cores
export CUDA_VISIBLE_DEVICES="" HIP_VISIBLE_DEVICES="" # the proofs are of the CPU, also where GPUs are
# The whole suite on two processes, each file on one of them; what is asked for runs alone.
[ $# -gt 0 ] || set -- --numprocesses 2 --dist loadfile
exec .venv/bin/python -m pytest "$@"
