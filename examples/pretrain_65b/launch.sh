#!/usr/bin/env bash
# launch.sh WORLD [key=value ...]: this node's part of a job of WORLD GPUs. Reads MASTER (the first node's address),
# NODES, and optionally GPUS_PER_NODE (8) and PORT (29500).
set -euo pipefail
world=$1
shift
gpus=${GPUS_PER_NODE:-8}
: "${NODES:?set NODES, the number of nodes}" "${MASTER:?set MASTER, the address of the first node}"
if [ $((NODES * gpus)) -ne "$world" ]; then
    echo "error: $NODES nodes x $gpus GPUs = $((NODES * gpus)) processes: this configuration is for $world" >&2
    exit 2
fi
cd "$(dirname "$0")/../.."
exec "${TORCHRUN:-torchrun}" --nnodes "$NODES" --nproc-per-node "$gpus" --rdzv-backend c10d \
    --rdzv-endpoint "$MASTER:${PORT:-29500}" --rdzv-id "${SLURM_JOB_ID:-pretrain_65b}" \
    -m megatron_lite.pretrain "examples/pretrain_65b/gpus_$world.yaml" "$@"
