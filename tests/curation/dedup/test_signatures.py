"""Hashes of text: the same from every instruction set, over the tokens that the splitter defines."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_lite.curation import _dedup
from megatron_lite.curation.words import split_reference

TEXT = st.text(st.sampled_from("aB c.\n'éÉΣ漢字Ж𝒜 "), max_size=60)


def lower(text: str) -> str:
    """Lower case code point by code point: str.lower() knows where a sigma ends a word, and makes two of one I."""
    return "".join(character.lower()[0] for character in text)


def shingles(text: str) -> set[tuple[str, ...]]:
    tokens = split_reference(lower(text))
    return {tuple(tokens[i : i + 5]) for i in range(max(len(tokens) - 4, min(len(tokens), 1)))}


def random_texts(generator: np.random.Generator, count: int) -> list[str]:
    """Of every length around the ends of blocks (1024 shingles), in several scripts."""
    lengths = [*range(12), 1023, 1024, 1025, 1028, 1029, 2052, 5000, *generator.integers(12, 900, count).tolist()]
    words = ["alpha", "Beta,", "naïve", "Ёлка", "漢字", "don't", "x", "a_very_long_identifier_indeed_so_it_is", "3.14"]
    return [" ".join(generator.choice(words, length)) for length in lengths]


@pytest.mark.parametrize("instruction_set", _dedup.instruction_sets())
def test_every_instruction_set_gives_the_same_bits(instruction_set):
    texts = random_texts(np.random.default_rng(0), 50)
    expected, has_tokens = reference_band_hashes(texts, seed=7)
    hashes, has = _dedup.band_hashes(texts, 7, instruction_set)
    assert np.array_equal(hashes, expected)
    assert has.tolist() == has_tokens


def reference_band_hashes(texts: list[str], seed: int) -> tuple[np.ndarray, list[bool]]:
    """Minima worked out in numpy over the C++ module's shingles, folded by Python's integers."""
    hashes, has_tokens = np.zeros((len(texts), _dedup.BANDS), np.uint64), []
    random = [mix((seed + (i + 1) * 0xBB67AE8584CAA73B) % 2**64) for i in range(112)]
    a = np.array([value % 2**32 | 1 for value in random], np.uint32)
    b = np.array([value >> 32 for value in random], np.uint32)
    for i, text in enumerate(texts):
        x = (_dedup.shingles(text) >> np.uint64(32)).astype(np.uint32)
        has_tokens.append(len(x) > 0)
        if len(x):
            minima = (x[:, None] * a + b).min(0).tolist()
            hashes[i] = [fold_band(band, minima[8 * band : 8 * band + 8]) for band in range(_dedup.BANDS)]
    return hashes, has_tokens


def fold_band(band: int, minima: list[int]) -> int:
    value = mix((band + 0x3C6EF372FE94F82B) % 2**64)
    for first, second in zip(minima[::2], minima[1::2], strict=True):
        product = (value ^ first) * ((second << 32 | 1) ^ 0xA54FF53A5F1D36F1)
        value = product % 2**64 ^ product >> 64
    return mix(value)


def mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def test_an_unknown_instruction_set_is_refused_by_name():
    with pytest.raises(ValueError, match="instruction set 'mmx' is none of this processor's: portable"):
        _dedup.band_hashes(["a"], 1, "mmx")


@given(TEXT, TEXT)
def test_shingles_are_the_sets_of_five_tokens_in_lower_case(a, b):
    assert len(_dedup.shingles(a)) == len(shingles(a))
    common = np.intersect1d(_dedup.shingles(a), _dedup.shingles(b))
    assert len(common) == len(shingles(a) & shingles(b))


def test_lower_case_is_that_of_each_code_point():
    every = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    # Letters that are younger than the table may have a lower case in this Python, none has another one.
    pairs = zip(every, _dedup.lowercase(every), strict=True)
    assert all(mine in (character, lower(character)) for character, mine in pairs)
    assert _dedup.lowercase("ÀÉΣΑΣ İstanbul ЖЁ ǅ ﬃ ß 𐐀") == "àéσασ istanbul жё ǆ ﬃ ß 𐐨"


def test_hashes_of_all_short_texts_differ_and_flip_half_their_bits_with_each_bit_of_text():
    texts = [bytes([a, b, c][:length]) for length in (1, 2, 3) for a in range(32) for b in range(32) for c in range(4)]
    texts = sorted(set(texts)) + [bytes([i]) * length for i in range(8) for length in range(4, 70)]
    assert len({_dedup.hash_bytes(text, 0) for text in texts}) == len(texts)
    generator = np.random.default_rng(1)
    for length in (1, 3, 4, 7, 8, 9, 16, 17, 32, 40):
        flips = []
        for _ in range(40):
            text = bytearray(generator.bytes(length))
            before = _dedup.hash_bytes(bytes(text), 0)
            text[generator.integers(length)] ^= 1 << generator.integers(8)
            flips.append((before ^ _dedup.hash_bytes(bytes(text), 0)).bit_count())
        # The mean of 40 binomials of 64 trials has a deviation of 0.63.
        assert abs(np.mean(flips) - 32) < 4 * 0.63
