#!/usr/bin/env bash
# On each of the 16 nodes: MASTER=<address of the first node> NODES=16 bash torchrun_128.sh [key=value ...]
exec bash "$(dirname "$0")/launch.sh" 128 "$@"
