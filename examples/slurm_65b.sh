#!/usr/bin/env bash
# sbatch --nodes N examples/slurm_65b.sh COMMAND CONFIG.yaml [key=value ...], from the repository's root, on N x 8 GPUs
#SBATCH --job-name=after_65b
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --output=after_65b_%j.log
set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# The node's own address: its name need not resolve on the others.
MASTER=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
export MASTER NODES="$SLURM_NNODES"
exec srun --kill-on-bad-exit=1 bash examples/launch.sh "$((SLURM_NNODES * 8))" "$@"
