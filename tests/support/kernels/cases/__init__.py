"""The cases of all operations."""

from support.kernels.cases import rms_norm

CASES = [*rms_norm.CASES]
