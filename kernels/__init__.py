"""Triton kernels, one file an operation, imported as `megatron_lite.kernels` (setup.py maps the folder).

None has landed yet: every operation runs on PyTorch's own, which is what `kernels.backend: auto` chooses.
"""
