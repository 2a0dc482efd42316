"""Named model shapes for `model: {preset: NAME}`; fields given beside the preset override it."""

from collections.abc import Mapping

_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
)

# One row a preset, in the order of _FIELDS.
_ROWS = {
    "65b": (8192, 25600, 80, 64, 8, 128_000, False),  # 64.5e9 parameters: the reference run
    "13b": (5120, 13824, 40, 40, 8, 128_000, False),  # 12.2e9
    "7b": (4096, 14336, 32, 32, 8, 128_000, False),  # 8.0e9
    "1b": (2048, 8192, 16, 32, 8, 128_000, True),  # 1.2e9
    "125m": (768, 2048, 12, 12, 4, 32_000, True),  # 100e6
    "tiny": (128, 352, 4, 4, 2, 4096, True),  # 1.3e6: the quickstart
    "nano": (64, 160, 4, 4, 2, 512, True),  # 0.2e6: tests
}

PRESETS: Mapping[str, Mapping[str, int | bool]] = {
    name: dict(zip(_FIELDS, row, strict=True)) for name, row in _ROWS.items()
}
