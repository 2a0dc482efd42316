#!/usr/bin/env bash
# launch.sh WORLD [key=value ...]: this node's part of a job of WORLD GPUs; examples/launch.sh says what it reads.
world=$1
shift
exec bash "$(dirname "$0")/../launch.sh" "$world" pretrain "examples/pretrain_65b/gpus_$world.yaml" "$@"
