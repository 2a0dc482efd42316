"""What the kernels cost, as far as this machine can tell: `python -m megatron_lite.kernels.benchmarks`.

operation.py    an operation, its reference, inputs, bytes and FLOPs, and what is known of its kernels
ours.py         every operation at the 65B model's shapes; peers.py, other people's kernels
specimen.py     one launch of a kernel on one target, noted instead of started
machine_code.py instructions, their source lines and their loops
compiled.py     compiles a specimen for a GPU that need not be there, and reads its facts
gate.py         what the facts must be; gate.json, what they were
roofline.py     the least time that bytes and FLOPs allow at published figures
timing.py       times measured on a GPU
table.py        all of it as rows of one CSV; plot.py draws the times
"""
