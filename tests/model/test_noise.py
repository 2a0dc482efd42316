"""Dropout and noise of training: functions of sample, place, name and column, beside the same in numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.drawn import Drawn
from support.layouts import Layout, build_trainer, global_batch, my_batches

from megatron_lite.config import LoraConfig, config_from_tree
from megatron_lite.errors import UsageError
from megatron_lite.model import noise
from megatron_lite.model.noise import Dropout, noisy
from megatron_lite.model.outputs import stacked
from megatron_lite.model.sequences import Draws
from megatron_lite.training.boundaries import microbatches_of
from megatron_lite.training.token_feed import with_draws

NAME = "model.layers.3.mlp.down_proj.lora_A.weight"
DRAWN = Drawn(seed=7, step=5, samples=4, length=6)
LAYOUT = Layout(lora=LoraConfig(rank=2, dropout=0.4, targets=("o_proj",)), neftune=5.0, layers=2)


def keys_of(drawn: Drawn) -> torch.Tensor:
    """int64 [T, B]."""
    return torch.from_numpy(drawn.keys.view(np.int64)).t().contiguous()


def random(*size: int) -> torch.Tensor:
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
def test_dropout_keeps_what_the_plain_numbers_keep_scaled_and_its_gradient_goes_the_same_way(monkeypatch, chunk):
    monkeypatch.setattr(noise, "_CHUNK", chunk)
    drop, x = Dropout(keys_of(DRAWN), 0.3, NAME), random(6, 4, 40)
    kept = torch.from_numpy(DRAWN.uniform(NAME, 40) >= 0.3).transpose(0, 1)
    assert torch.allclose(drop(x), torch.where(kept, x / 0.7, 0.0), rtol=1e-15, atol=0)
    a, b = random(6, 4, 40), random(6, 4, 40).flip(0)
    assert (drop(a) * b).sum().item() == pytest.approx((a * drop(b)).sum().item(), rel=1e-12)


def test_a_part_of_the_columns_is_dropped_as_in_the_whole():
    x = random(6, 4, 40)
    whole = Dropout(keys_of(DRAWN), 0.5, NAME)(x)
    parts = [Dropout(keys_of(DRAWN), 0.5, NAME, first)(x[..., first : first + 10]) for first in range(0, 40, 10)]
    assert torch.equal(torch.cat(parts, -1), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_so_many_are_dropped_and_the_mean_stays_in_every_dtype(dtype):
    """Of 400,000 numbers the share deviates by 0.0007 or so."""
    drop = Dropout(keys_of(Drawn(1, 1, samples=20, length=20)), 0.3, NAME)
    result = drop(torch.ones(20, 20, 1000, dtype=dtype))
    assert result.dtype == dtype
    assert (result == 0).double().mean().item() == pytest.approx(0.3, abs=0.003)
    assert result.unique().double().tolist() == pytest.approx([0, 1 / 0.7], rel=torch.finfo(dtype).eps)


def test_every_name_step_sample_place_and_column_has_numbers_of_its_own():
    first = Dropout(keys_of(DRAWN), 0.5, NAME)(torch.ones(6, 4, 64))
    others = [
        Dropout(keys_of(DRAWN), 0.5, NAME.replace("3", "4"))(torch.ones(6, 4, 64)),
        Dropout(keys_of(replace(DRAWN, step=6)), 0.5, NAME)(torch.ones(6, 4, 64)),
        Dropout(keys_of(replace(DRAWN, seed=8)), 0.5, NAME)(torch.ones(6, 4, 64)),
        first.roll(1, 0), first.roll(1, 1), first.roll(1, 2),
    ]  # fmt: skip
    for other in others:
        assert 0.4 < (other == first).double().mean().item() < 0.6


def test_noise_is_uniform_and_of_the_size_that_the_samples_own_length_gives():
    """Each element within alpha / sqrt(L H), and so of deviation 1 / sqrt(3) of it, whatever lies beside the sample."""
    lengths = torch.tensor([6, 24, 6, 96]).expand(6, 4)
    x = random(6, 4, 1000)
    found = noisy(x, Draws(keys_of(DRAWN), lengths), 5.0, "embed") - x
    uniform = torch.from_numpy(2 * DRAWN.uniform("embed", 1000) - 1).transpose(0, 1)
    size = 5.0 / (lengths * 1000).double().sqrt()
    assert torch.allclose(found, uniform * size.unsqueeze(-1), rtol=1e-10, atol=1e-14)
    relative = found / size.unsqueeze(-1)
    assert relative.abs().max() <= 1
    assert relative.std().item() == pytest.approx(1 / np.sqrt(3), rel=0.02)


def test_data_ranks_draw_what_one_would_and_a_step_draws_the_same_when_it_is_resumed():
    config = LAYOUT.config(micro_batch_size=3)
    whole = with_draws(microbatches_of(global_batch(1, config), config), key=17, first=24)
    halves = [
        one
        for rank in range(2)
        for one in with_draws(microbatches_of(global_batch(1, config).chunk(2)[rank], config), 17, 24 + 6 * rank)
    ]
    for ours, theirs in zip(whole, halves, strict=True):
        assert torch.equal(ours.draws.keys, theirs.draws.keys)
        assert (ours.draws.lengths == config.train.sequence_length).all()
    keys = torch.cat([one.draws.keys.flatten() for one in whole])
    assert len(keys.unique()) == len(keys)


def test_who_asks_gets_no_noise_whatever_the_batch_says():
    trainer = build_trainer(LAYOUT)
    batches = my_batches(trainer, 1)
    certain = [replace(one, draws=None) for one in batches]
    assert all(one.draws is not None for one in batches)
    found, expected = (trainer.model.outputs(its, trainer.objective) for its in (batches, certain))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(stacked(ours), stacked(theirs))
    assert trainer.evaluate(batches).loss == trainer.evaluate(certain).loss != trainer.gradients(batches).loss


@pytest.mark.parametrize("alpha", [0, -1.0])
def test_noise_of_no_size_is_refused(alpha):
    tree = Layout().config().model_dump(mode="json")
    with pytest.raises(UsageError, match=r"train\.neftune_alpha"):
        config_from_tree(tree | {"train": tree["train"] | {"neftune_alpha": alpha}})
