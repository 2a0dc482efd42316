"""AdamW's kernel against torch.optim.AdamW and closed forms; what it must leave alone, and what it refuses."""

from fractions import Fraction

import pytest
import torch
from megatron_lite.kernels import adamw, costs
from megatron_lite.kernels.adapters import apex
from megatron_lite.kernels.reference import adamw as reference
from support.kernels.harness import fresh, random
from support.kernels.stand_ins import stand_in_for_apex_adam
from triton import language as tl
from triton.runtime import interpreter

from megatron_lite.planning.memory import StorageTracker

RATE, BETAS, EPS, DECAY = 3e-3, [0.9, 0.95], 1e-8, 0.1
BOTH = pytest.mark.parametrize("update", [adamw.adamw_, reference.adamw_], ids=["kernel", "reference"])


def zeros(count: int, dtype=torch.float32):
    return tuple(torch.zeros(count, dtype=dtype) for _ in range(4))


def arguments(count: int = 40, dtype=torch.float32):
    master, gradient, first, second = (random((count,), dtype, fresh()) for _ in range(4))
    return [master, gradient, first, second.abs(), None, None, 10, 1, RATE, BETAS, EPS, DECAY]


@BOTH
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=str)
def test_five_updates_equal_torchs_optimizer_with_two_groups_and_scaled_gradients(update, dtype, tolerance):
    count, decayed, clip = 1500, 700, torch.tensor(0.25, dtype=dtype)
    generator = fresh(3)
    master, gradient, first, second = zeros(count, dtype)
    master.copy_(random((count,), dtype, generator))
    groups = [torch.nn.Parameter(part.clone()) for part in (master[:decayed], master[decayed:])]
    theirs = torch.optim.AdamW(
        [{"params": [part], "weight_decay": decay} for part, decay in zip(groups, (DECAY, 0.0), strict=True)],
        lr=RATE, betas=tuple(BETAS), eps=EPS, foreach=False,
    )  # fmt: skip
    for number in range(1, 6):
        gradient.copy_(random((count,), dtype, generator))
        groups[0].grad, groups[1].grad = (gradient * clip).split([decayed, count - decayed])
        theirs.step()
        update(master, gradient, first, second, None, clip, decayed, number, RATE, BETAS, EPS, DECAY)
        assert (master - torch.cat([part.detach() for part in groups])).abs().max() <= tolerance


@BOTH
def test_the_first_update_from_nothing_is_a_step_of_the_rate_along_the_sign(update):
    """m / (1 - b1) = g and v / (1 - b2) = g^2, so p becomes p (1 - rate decay) - rate g / (|g| + eps)."""
    master, gradient, first, second = zeros(6, torch.float64)
    gradient[:] = torch.tensor([1.0, -1e-3, 3e-8, -1e-8, 0.0, 1e20])
    master += 2.0
    update(master, gradient, first, second, None, None, 3, 1, RATE, BETAS, EPS, DECAY)
    start = torch.tensor([2.0 * (1 - RATE * DECAY)] * 3 + [2.0] * 3, dtype=torch.float64)
    torch.testing.assert_close(master, start - RATE * gradient / (gradient.abs() + EPS), rtol=1e-14, atol=0)


@pytest.mark.parametrize("update", [adamw.adamw_, reference.adamw_, apex.adamw_], ids=["kernel", "reference", "apex"])
@pytest.mark.parametrize("clip", [None, torch.tensor(0.3)], ids=["unclipped", "clipped"])
def test_the_copy_is_the_new_master_and_the_gradient_comes_back_as_it_was_or_clipped_for_want_of_memory(
    monkeypatch, update, clip
):
    stand_in_for_apex_adam(monkeypatch)
    given = arguments(1500)
    given[4], given[5] = torch.zeros(1500, dtype=torch.bfloat16), clip
    possible = [given[1].clone()] if clip is None else [given[1].clone(), given[1] * clip]
    with StorageTracker(torch.device("cpu")) as tracker:
        for tensor in given[:5]:
            tensor.view(-1)
        held = tracker.live
        update(*given)
    assert tracker.peak == held
    assert torch.equal(given[4], given[0].to(torch.bfloat16))
    assert any(torch.equal(given[1], gradient) for gradient in possible)


@BOTH
def test_padding_stays_zero(update):
    master, gradient, first, second = zeros(9)
    for number in (1, 2, 50):
        update(master, gradient, first, second, None, None, 5, number, RATE, BETAS, EPS, DECAY)
    assert not any(tensor.any() for tensor in (master, first, second))


@BOTH
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_gradient_whose_square_is_no_number_stays_in_its_own_element(update, bad):
    given, clean = arguments(), arguments()
    given[1][7] = bad
    update(*given)
    update(*clean)
    others = torch.arange(40) != 7
    assert all(torch.equal(a[others], b[others]) for a, b in zip(given[:4], clean[:4], strict=True))
    assert not given[3][7].isfinite()


def test_gradients_whose_squares_vanish_divide_by_eps_alone():
    master, gradient, first, second = zeros(4)
    gradient += 1e-30
    adamw.adamw_(master, gradient, first, second, None, None, 0, 1, RATE, BETAS, EPS, 0.0)
    torch.testing.assert_close(master, torch.full((4,), -RATE * 1e-30 / EPS), rtol=1e-6, atol=0)


@pytest.mark.parametrize("beta", [0.9, 0.95, 0.999, 0.0])
@pytest.mark.parametrize("updates", [1, 2, 1000])
def test_bias_correction_is_exact_to_float64(beta, updates):
    assert adamw.bias_correction(beta, updates) == pytest.approx(float(1 - Fraction(beta) ** updates), rel=1e-13)


@pytest.mark.parametrize("value", [0.95, 1 - 3e-5, 1e-8, 0.0, 1.0, -3.7e11])
def test_two_float32_hold_a_number_to_48_bits(value):
    halves = adamw.halves_of(value)
    assert all(torch.tensor(half, dtype=torch.float64).float().isfinite() for half in halves)
    high, low = (Fraction(torch.tensor(half, dtype=torch.float32).item()) for half in halves)
    assert abs(high + low - Fraction(value)) <= abs(Fraction(value)) * Fraction(1, 2**48)


def test_places_in_a_shard_are_64_bit_numbers(monkeypatch):
    """So that a shard may have more than 2^31 elements; the interpreter sees every offset added to a pointer."""
    seen = []
    add = interpreter.InterpreterBuilder.create_addptr

    def watched(self, pointer, offset):
        seen.append(offset.dtype.scalar)
        return add(self, pointer, offset)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_addptr", watched)
    adamw.adamw_(*arguments())
    assert len(seen) == 7 and set(seen) == {tl.int64}


def test_a_parameter_costs_thirty_bytes():
    assert costs.adamw_(10**9, 2, clips=False).moved == 30 * 10**9


def test_an_empty_shard_is_left_as_it_is():
    adamw.adamw_(*zeros(0), None, None, 0, 1, RATE, BETAS, EPS, DECAY)


def test_the_schema_names_what_is_written_into_and_holds_it():
    written = [a.name for a in adamw.adamw_._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    assert written == ["master", "first", "second", "compute"]
    given = arguments()
    given[4], given[5] = torch.zeros(40, dtype=torch.bfloat16), torch.tensor(0.5)
    torch.library.opcheck(adamw.adamw_, tuple(given))


def test_on_meta_tensors_nothing_happens():
    given = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments()]
    assert adamw.adamw_(*given) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: torch.zeros(39)}, r"adamw_: gradient has shape \[39\], must be \[40\]"),
        ({2: torch.zeros(40, dtype=torch.float64)}, "adamw_: first is torch.float64, must be torch.float32"),
        ({0: torch.zeros(40, dtype=torch.bfloat16)}, "adamw_: master is torch.bfloat16, must be torch.float32 or"),
        ({0: torch.zeros(4, 10)}, r"adamw_: master has shape \[4, 10\], must be \[40\]"),
        ({4: torch.zeros(40, dtype=torch.int32)}, "adamw_: compute is torch.int32"),
        ({5: torch.zeros(1)}, r"adamw_: clip has shape \[1\], must be \[\]"),
        ({5: torch.zeros((), dtype=torch.float64)}, "adamw_: clip is torch.float64, must be torch.float32"),
        ({3: torch.zeros(80)[::2]}, "adamw_: second has stride 2, must be contiguous"),
        ({7: 0}, "adamw_: updates is 0, must be at least 1"),
    ],
)
def test_what_it_refuses(change, message):
    given = arguments()
    for place, value in change.items():
        given[place] = value
    with pytest.raises(ValueError, match=message):
        adamw.adamw_(*given)
