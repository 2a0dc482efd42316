#!/usr/bin/env bash
# On each of the 256 nodes: MASTER=<address of the first node> NODES=256 bash torchrun_2048.sh [key=value ...]
exec bash "$(dirname "$0")/launch.sh" 2048 "$@"
