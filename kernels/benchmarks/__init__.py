"""What the kernels cost, as far as this machine can tell: `python -m megatron_lite.kernels.benchmarks`.

specimen.py     a kernel with the arguments of one launch
ours.py         every kernel at the 65B model's shapes; peers.py, other people's
machine_code.py instructions, their source lines and their loops
compiled.py     compiles a specimen for a GPU that need not be there, and reads its facts
gate.py         what the facts must be; gate.json, what they were
roofline.py     times that bytes and FLOPs alone would take
timing.py       times measured on a GPU
table.py        both as rows of one CSV; plot.py draws them
"""
