#!/usr/bin/env bash
# launch.sh WORLD COMMAND CONFIG.yaml [key=value ...]: this node's part of a job of WORLD GPUs, COMMAND being pretrain,
# sft, reward or dpo. Reads MASTER (the first node's address), NODES, and optionally GPUS_PER_NODE (8) and PORT (29500).
set -euo pipefail
world=$1 command=$2 config=$3
shift 3
gpus=${GPUS_PER_NODE:-8}
: "${NODES:?set NODES, the number of nodes}" "${MASTER:?set MASTER, the address of the first node}"
if [ $((NODES * gpus)) -ne "$world" ]; then
    echo "error: $NODES nodes x $gpus GPUs = $((NODES * gpus)) processes: this configuration is for $world" >&2
    exit 2
fi
cd "$(dirname "$0")/.."
# Kernels that Triton compiles: on the node's own disk, or thousands of ranks write into one home directory.
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-${TMPDIR:-/tmp}/triton-${SLURM_JOB_ID:-$UID}}"
# Blocks that grow in place leave fewer holes; torch reads the second name before 2.9 and for older scripts.
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-$PYTORCH_ALLOC_CONF}"
# Seconds that torchrun leaves its ranks between TERM and KILL: a step, and saving. torch 2.11 knows 30 alone.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-280}"
exec "${TORCHRUN:-torchrun}" --nnodes "$NODES" --nproc-per-node "$gpus" --rdzv-backend c10d \
    --rdzv-endpoint "$MASTER:${PORT:-29500}" --rdzv-id "${SLURM_JOB_ID:-${command}_$world}" \
    -m "megatron_lite.$command" "$config" "$@"
