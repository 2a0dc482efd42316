"""Training's random numbers once more, in numpy: SplitMix64 (Steele, Lea, Flood 2014, figure 17) of what is counted.

It shares nothing with the package but what a number depends on: seed, step, sample, place, name, column.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from support.reference import Extras
from torch import Tensor

GOLDEN, FIRST, SECOND = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def split_mix(counter: np.ndarray, key: np.ndarray | np.uint64) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = counter.astype(np.uint64) * GOLDEN + key
        z = (z ^ (z >> np.uint64(30))) * FIRST
        z = (z ^ (z >> np.uint64(27))) * SECOND
    return z ^ (z >> np.uint64(31))


def key_of(*parts: int | str) -> np.uint64:
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return np.frombuffer(digest, "<u8")[0]


@dataclass(frozen=True)
class Drawn:
    """Of the samples 0 to `samples` - 1 of a step, each of `length` tokens."""

    seed: int
    step: int
    samples: int
    length: int

    @property
    def keys(self) -> np.ndarray:
        """uint64 [samples, length]."""
        of_sample = split_mix(np.arange(self.samples), key_of(self.seed, "draws", self.step))
        return split_mix(np.arange(self.length)[None], of_sample[:, None])

    def uniform(self, name: str, columns: int) -> np.ndarray:
        """float64 [samples, length, columns] in [0, 1)."""
        of_token = split_mix(self.keys, key_of(name))
        return (split_mix(np.arange(columns), of_token[..., None]) >> np.uint64(11)) * 2.0**-53

    def extras(self, config) -> Extras:
        """What a configuration's training adds in this step."""
        lora, alpha, hidden = config.lora, config.train.neftune_alpha, config.model.hidden_size

        def dropout(name: str, columns: int) -> Tensor | float:
            if not lora.dropout:
                return 1.0
            return torch.from_numpy((self.uniform(name, columns) >= lora.dropout) / (1 - lora.dropout))

        noise: Tensor | float = 0.0
        if alpha is not None:
            uniform = 2 * self.uniform("model.embed_tokens.weight", hidden) - 1
            noise = torch.from_numpy(uniform * alpha / np.sqrt(self.length * hidden))
        return Extras(1.0 if lora is None else lora.alpha / lora.rank, dropout, noise)
