"""What data/csrc/helpers.cpp gives to Python."""

from collections.abc import Sequence
from typing import SupportsFloat, SupportsInt

import numpy as np
from numpy.typing import ArrayLike, NDArray

def check_sequences(
    lengths: np.ndarray, pointers: np.ndarray, first: SupportsInt, token_bytes: SupportsInt, bin_bytes: SupportsInt
) -> int: ...
def check_documents(
    documents: np.ndarray, first: SupportsInt, previous: SupportsInt, sequences: SupportsInt
) -> int: ...
def count_tokens(lengths: np.ndarray, first: SupportsInt, last: SupportsInt) -> int: ...
def build_sample_index(
    lengths: np.ndarray, first: SupportsInt, last: SupportsInt, sequence_length: SupportsInt
) -> NDArray[np.int64]: ...
def gather_tokens(
    tokens: np.ndarray,
    lengths: np.ndarray,
    pointers: np.ndarray,
    sequence: SupportsInt,
    last: SupportsInt,
    offset: SupportsInt,
    count: SupportsInt,
) -> NDArray[np.int64]: ...
def token_range(tokens: np.ndarray) -> tuple[int, int]: ...

class SampleReader:
    def __init__(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        pointers: np.ndarray,
        index: ArrayLike,
        last: SupportsInt,
        sequence_length: SupportsInt,
        order: np.ndarray | None = None,
    ) -> None: ...
    def read(self, samples: ArrayLike) -> NDArray[np.int64]: ...

def permute(
    begin: SupportsInt, end: SupportsInt, size: SupportsInt, seed: SupportsInt, stream: SupportsInt, epoch: SupportsInt
) -> NDArray[np.int64]: ...
def blend(weights: Sequence[SupportsFloat], begin: SupportsInt, end: SupportsInt) -> tuple[np.ndarray, np.ndarray]: ...
def blend_counts(weights: Sequence[SupportsFloat], position: SupportsInt) -> NDArray[np.int64]: ...

class RandomState:
    def __init__(self, seed: SupportsInt) -> None: ...
    def shuffled(
        self, dtype: np.dtype, first: SupportsInt, last: SupportsInt, copies: SupportsInt = 1
    ) -> np.ndarray: ...

def build_megatron_sample_index(
    lengths: np.ndarray, order: np.ndarray, sequence_length: SupportsInt, samples: SupportsInt
) -> NDArray[np.int64]: ...
def blend_like_megatron(
    weights: Sequence[SupportsFloat], begin: SupportsInt, end: SupportsInt, counts: Sequence[SupportsInt] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
