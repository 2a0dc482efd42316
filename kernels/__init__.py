"""Triton kernels, one file an operation, imported as `megatron_lite.kernels` (setup.py maps the folder).

    choice.py           which implementation a run uses, and why: decided once, handed down
    reference/          every operation in plain PyTorch, same names and signatures: what a CPU uses
    adapters/           flash-attn and apex behind the same signatures; neither has run with this code
    registration.py     makes a launch an operation of torch: meta form, gradient, FLOP formula
    launch.py           launch parameters of each target
    checks.py           checks of arguments, whose errors name the thing
    costs.py            bytes and FLOPs of every operation, in closed form
    visibility.py       which keys a query sees, as ranges
    interpreter.py      Triton's CPU interpreter, made right for bfloat16
    benchmarks/         machine code of every kernel for four targets, against a committed table

README.md says how they are proved, and where they ask for more than their inputs once. Kernels know no process group
and nothing of the package. None has run on a GPU yet: they are proved in the interpreter and compiled ahead of time.
"""
