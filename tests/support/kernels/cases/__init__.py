"""The cases of all operations."""

from support.kernels.cases import (
    adamw,
    attention,
    cross_entropy,
    embedding,
    entropy,
    rms_norm,
    rope,
    square_norm,
    swiglu,
)

CASES = [
    *adamw.CASES,
    *attention.CASES,
    *cross_entropy.CASES,
    *embedding.CASES,
    *entropy.CASES,
    *rms_norm.CASES,
    *rope.CASES,
    *square_norm.CASES,
    *swiglu.CASES,
]
