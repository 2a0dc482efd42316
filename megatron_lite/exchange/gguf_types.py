"""GGUF's tensor types that are read, and what their blocks mean as numbers.

    Q8_0   d: f16, 32 x i8                        d q
    Q4_0   d: f16, 16 bytes: low, then high half  d (q - 8)
    Q4_1   d, m: f16, 16 bytes                    d q + m

Each number is made in float32 in the order that llama.cpp's own Python has it, so that they are its numbers to the bit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

BLOCK = 32  # numbers of a quantized block
Numbers = Callable[[np.ndarray], np.ndarray]  # bytes [blocks, size] to float32 [blocks, BLOCK]


@dataclass(frozen=True)
class Kind:
    """`count` numbers take `size` bytes. Without `numbers` they are `dtype` as they stand."""

    name: str
    count: int
    size: int
    dtype: torch.dtype
    numbers: Numbers | None = None

    def bytes(self, numbers: int) -> int:
        return numbers // self.count * self.size


def _scale(blocks: np.ndarray, column: int) -> np.ndarray:
    return blocks[:, column : column + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(blocks: np.ndarray) -> np.ndarray:
    return np.concatenate([blocks & 15, blocks >> 4], axis=1)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _scale(blocks, 0)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    return (_nibbles(blocks[:, 2:]).astype(np.int8) - np.int8(8)).astype(np.float32) * _scale(blocks, 0)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    return _nibbles(blocks[:, 4:]).astype(np.float32) * _scale(blocks, 0) + _scale(blocks, 2)


KINDS = {
    0: Kind("F32", 1, 4, torch.float32),
    1: Kind("F16", 1, 2, torch.float16),
    30: Kind("BF16", 1, 2, torch.bfloat16),
    2: Kind("Q4_0", BLOCK, 18, torch.float32, _q4_0),
    3: Kind("Q4_1", BLOCK, 20, torch.float32, _q4_1),
    8: Kind("Q8_0", BLOCK, 34, torch.float32, _q8_0),
}
# Those that are not read, for the sentence that refuses them.
OTHERS = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
