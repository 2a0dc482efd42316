#!/usr/bin/env bash
# sbatch examples/pretrain_65b/slurm_512.sh [key=value ...], from the repository's root
#SBATCH --job-name=pretrain_65b
#SBATCH --nodes=64
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --output=pretrain_65b_%j.log
set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# The node's own address: its name need not resolve on the others.
MASTER=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
export MASTER NODES="$SLURM_NNODES"
exec srun --kill-on-bad-exit=1 bash examples/pretrain_65b/launch.sh 512 "$@"
