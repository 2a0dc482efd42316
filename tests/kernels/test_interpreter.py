"""Triton's interpreter as the other tests use it: bfloat16 as a GPU has it, and loops of loaded counts."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from megatron_lite.kernels.interpreter import make_exact, narrow, widen
from triton.runtime import interpreter

ALL = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)


def test_every_bfloat16_is_widened_as_torch_does():
    found = torch.from_numpy(widen(ALL.view(torch.int16).numpy().view(np.uint16)).copy())
    assert torch.equal(found.view(torch.int32), ALL.float().view(torch.int32))


def test_float32_are_rounded_to_the_nearest_bfloat16_and_to_even_in_the_middle():
    """Each bfloat16, the middle to the next one, and what lies just before and just behind the middle."""
    bits = ALL.float().view(torch.int32).unsqueeze(1) + torch.tensor([0, 0x7FFF, 0x8000, 0x8001], dtype=torch.int32)
    values = bits.view(torch.float32)
    found = torch.from_numpy(narrow(values.numpy()).view(np.int16).copy()).view(torch.bfloat16)
    expected = values.bfloat16()
    assert torch.equal(found.isnan(), expected.isnan())
    here = ~expected.isnan()
    assert torch.equal(found[here].view(torch.int16), expected[here].view(torch.int16))


@triton.jit
def arithmetic(x, y, results, N: tl.constexpr):
    place = tl.arange(0, N)
    a, b = tl.load(x + place), tl.load(y + place)
    tl.store(results + place, a + b)
    tl.store(results + N + place, a * b)
    tl.store(results + 2 * N + place, tl.maximum(a, b))
    tl.store(results + 3 * N + place, (a.to(tl.float32) / 3).to(tl.bfloat16))
    tl.store(results + 4 * N + place, tl.sum(a, 0) + tl.zeros_like(a))


def test_bfloat16_arithmetic_is_torchs():
    x, y = torch.randn(2, 64, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    results = torch.empty(5, 64, dtype=torch.bfloat16)
    arithmetic[(1,)](x, y, results, 64)
    expected = x + y, x * y, torch.maximum(x, y), (x.float() / 3).bfloat16(), x.double().sum().bfloat16().expand(64)
    for found, right in zip(results, expected, strict=True):
        assert torch.equal(found, right)


@triton.jit
def plus(total, x):
    return total + tl.load(x)


@triton.jit
def count_up(counts, x, result):
    total = 0.0
    for _ in range(tl.load(counts)):
        for _ in range(tl.load(counts + 1) // 2):
            total = plus(total, x)
    tl.store(result, total)


def test_a_loop_may_be_counted_by_a_loaded_number_and_call_other_kernels_functions():
    counts, result = torch.tensor([3, 5]), torch.zeros(1)
    count_up[(1,)](counts, torch.tensor([2.5]), result)
    assert result.item() == 3 * 2 * 2.5


def test_after_a_launch_tritons_language_is_its_own_again():
    before = tl.load, tl.range, vars(tl.tensor).get("__index__")
    count_up[(1,)](torch.tensor([1, 2]), torch.ones(1), torch.zeros(1))
    assert (tl.load, tl.range, vars(tl.tensor).get("__index__")) == before
    with pytest.raises(ValueError, match="_semantic"):
        tl.load(1)


def test_a_second_call_changes_nothing():
    before = dict(vars(interpreter.InterpreterBuilder)), interpreter._patch_lang
    make_exact()
    assert (dict(vars(interpreter.InterpreterBuilder)), interpreter._patch_lang) == before
