"""What data/csrc/bpe.cpp gives to Python."""

from collections.abc import Sequence
from typing import SupportsFloat, SupportsInt

import numpy as np
from numpy.typing import NDArray

class Encoder:
    def __init__(
        self, pieces: Sequence[tuple[str, SupportsFloat, SupportsInt]], byte_ids: Sequence[SupportsInt]
    ) -> None: ...
    def encode(self, text: str) -> NDArray[np.int32]: ...
