#!/usr/bin/env bash
# On each of the 8 nodes: MASTER=<address of the first node> NODES=8 bash torchrun_64.sh [key=value ...]
exec bash "$(dirname "$0")/launch.sh" 64 "$@"
