"""Every operation in plain PyTorch, under the name and with the signature of its kernel.

What a CPU computes with, and what the kernels are held against.
"""
