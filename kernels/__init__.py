"""Triton kernels, one file an operation, imported as `megatron_lite.kernels` (setup.py maps the folder).

    reference/          every operation in plain PyTorch, same names and signatures
    registration.py     makes a launch an operation of torch: meta form, gradient, FLOP formula
    launch.py           launch parameters of each target, checks of arguments
    costs.py            bytes and FLOPs of every operation, in closed form
    interpreter.py      Triton's CPU interpreter, made right for bfloat16

Kernels know no process group and nothing of the package.
"""
