"""The table of kernels/README.md of what is asked for more than once, against the closed forms and today's figures."""

import re
from math import ceil
from pathlib import Path

import pytest
from megatron_lite.kernels import costs
from megatron_lite.kernels.benchmarks import ours
from megatron_lite.kernels.costs import Attention

from megatron_lite import kernels

README = Path(kernels.__file__).parent / "README.md"
ROWS = {
    name: {"form": form, "here": here, "to moved": ratio}
    for name, form, here, ratio in re.findall(
        r"^\| ([^|`]+) \| `([^`]+)` \| ([^|]+) \| ([^|]+) \|", README.read_text(encoding="utf-8"), re.MULTILINE
    )
}


def sized(h, G, T, L, D):
    return Attention(1, h, G, T, T, D, causal=L == T, document=L if L < T else 0)


def attention(h, G, T, L, D, e):
    return costs.attention(sized(h, G, T, L, D), e)


def attention_backward(h, G, T, L, D, e, k):
    return costs.attention_backward(sized(h, G, T, L, D), k, e)


NORM = {"N": 1024, "H": 8192, "e": 2}
HEADS = {"h": 8, "G": 1, "T": 8192, "D": 128, "e": 2}
# The operation's cost, the symbols' values of the 65B model's rank, and others.
SIZES = {
    "rms_norm": (lambda N, H, e: costs.rms_norm(N, H, e), NORM, {"N": 5, "H": 123, "e": 4}),
    "add_rms_norm": (lambda N, H, e: costs.add_rms_norm(N, H, e), NORM, {"N": 1, "H": 64, "e": 4}),
    "rms_norm_backward": (
        lambda N, H, e: costs.rms_norm_backward(N, H, e, adds=False), NORM, {"N": 5, "H": 17, "e": 4},
    ),
    "add_rms_norm_backward": (
        lambda N, H, e: costs.rms_norm_backward(N, H, e, adds=True), NORM, {"N": 131, "H": 17, "e": 4},
    ),
    "rope_": (
        lambda N, h, D, P: costs.rope_(N, h, D, P, 2), {"N": 8192, "h": 9, "D": 128, "P": 8192},
        {"N": 74, "h": 7, "D": 12, "P": 37},
    ),
    "attention": (attention, HEADS | {"L": 8192}, {"h": 6, "G": 2, "T": 384, "L": 384, "D": 24, "e": 4}),
    "attention in documents": (attention, HEADS | {"L": 2048}, {"h": 6, "G": 2, "T": 512, "L": 256, "D": 24, "e": 4}),
    "attention_backward_": (
        attention_backward, HEADS | {"L": 8192, "k": 8}, {"h": 6, "G": 2, "T": 384, "L": 384, "D": 24, "e": 4, "k": 1},
    ),
    "attention_backward_ in documents": (
        attention_backward, HEADS | {"L": 2048, "k": 8}, {"h": 6, "G": 2, "T": 512, "L": 256, "D": 24, "e": 4, "k": 3},
    ),
    "embedding_backward_": (
        lambda T, M, R, H: costs.embedding_backward_(T, M, R, H, 2), {"T": 8192, "M": 1024, "R": 1024, "H": 8192},
        {"T": 20, "M": 15, "R": 5, "H": 1536},
    ),
    "adamw_": (lambda S: costs.adamw_(S, 2), {"S": 2**26}, {"S": 2052}),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_a_closed_form_is_what_the_operation_asks_for_again(name):
    cost, *sizes = SIZES[name]
    for size in sizes:
        assert eval(ROWS[name]["form"], {"ceil": ceil, "min": min}, size) == cost(**size).again


def test_figures_are_those_of_a_rank_of_the_65b_model_and_no_operation_is_missing():
    drawn = {
        one.name: {"here": f"{one.cost.again / 1e6:.3g} MB", "to moved": f"{one.cost.again / one.cost.moved:.2g}"}
        for one in ours.operations()
        if one.cost.again and "small heads" not in one.name
    }
    assert {name: {key: row[key] for key in ("here", "to moved")} for name, row in ROWS.items()} == drawn
    for name, (cost, here, _) in SIZES.items():
        assert cost(**here).again == next(one.cost.again for one in ours.operations() if one.name == name)
