"""What inference/csrc/paged_attention.cpp gives to Python."""

from typing import SupportsInt, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", np.float32, np.float64)

def turn_and_store(
    packed: NDArray[T],
    cosine: NDArray[T],
    sine: NDArray[T],
    positions: NDArray[np.int32],
    slots: NDArray[np.int64],
    memory: NDArray[T],
    threads: SupportsInt,
) -> None: ...
def paged_attention(
    packed: NDArray[T],
    memory: NDArray[T],
    tables: NDArray[np.int32],
    lengths: NDArray[np.int32],
    output: NDArray[T],
    threads: SupportsInt,
) -> None: ...
