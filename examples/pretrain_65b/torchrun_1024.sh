#!/usr/bin/env bash
# On each of the 128 nodes: MASTER=<address of the first node> NODES=128 bash torchrun_1024.sh [key=value ...]
exec bash "$(dirname "$0")/launch.sh" 1024 "$@"
