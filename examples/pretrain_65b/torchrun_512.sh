#!/usr/bin/env bash
# On each of the 64 nodes: MASTER=<address of the first node> NODES=64 bash torchrun_512.sh [key=value ...]
exec bash "$(dirname "$0")/launch.sh" 512 "$@"
