"""SplitMix64 as a function of a key and a counter (Steele, Lea, Flood 2014, figure 17): random bits of whatever is
counted, the same on every layout, in any order. int64 wraps as uint64 does; only the shifts must be made logical.
"""

import hashlib

from torch import Tensor


def key_of(*parts: int | str) -> int:
    """64 bits of what a sequence of numbers is for, such as (seed, name)."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def mixed(counter: Tensor, key: int | Tensor) -> Tensor:
    """int64 bits of each int64 number of `counter`."""
    z = counter * _signed(0x9E3779B97F4A7C15) + key
    z = (z ^ logical_shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ logical_shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ logical_shift(z, 31)


def logical_shift(z: Tensor, bits: int) -> Tensor:
    """To the right, zeros from the left."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
