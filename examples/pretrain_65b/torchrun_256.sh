#!/usr/bin/env bash
# On each of the 32 nodes: MASTER=<address of the first node> NODES=32 bash torchrun_256.sh [key=value ...]
exec bash "$(dirname "$0")/launch.sh" 256 "$@"
