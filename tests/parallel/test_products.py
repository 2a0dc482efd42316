"""Products with a weight as it is gathered, and reordered while it stays."""

import pytest
import torch
from support.layouts import Layout, build_trainer

from megatron_lite.parallel.pipeline.stage import held
from megatron_lite.parallel.products import product, product_with
from megatron_lite.parallel.weights import Weight


@pytest.fixture(scope="module", params=["float32", "float64", "bfloat16"])
def stage(request):
    return build_trainer(Layout(dtype=request.param)).stage


def weights_of(stage) -> list[Weight]:
    return [weight for shards in stage.shards for weight in shards.weights if len(weight.local.shape) == 2]


def test_any_number_of_rows_gives_the_exact_product_held_or_not(stage):
    generator = torch.Generator().manual_seed(0)
    for shards in stage.shards:
        shards.wait_gather()
    plain = {weight: weight.data for weight in weights_of(stage)}
    for weight, data in plain.items():
        for rows in (1, 2, 7, 64, 65):
            x = torch.randn(rows, 1, data.shape[1], generator=generator).to(data.dtype)
            exact = x.double() @ data.double().t()
            scale = {torch.float32: 1e-6, torch.float64: 1e-15, torch.bfloat16: 1e-2}[data.dtype]
            found = product_with(weight, x)
            assert weight.reordered is None and found.is_contiguous()
            torch.testing.assert_close(found, product(x, data.t()), rtol=0, atol=0)
            with held(stage):
                again = product_with(weight, x)
                assert (weight.reordered is not None) == (data.dtype == torch.float32)
            assert weight.reordered is None and again.shape == found.shape and again.dtype == found.dtype
            for one in (found, again):
                torch.testing.assert_close(one.double(), exact, rtol=scale, atol=10 * scale)
            for shards in stage.shards:
                shards.wait_gather()  # `held` has let go of them


def test_a_reordered_weight_is_forgotten_when_the_weight_may_change():
    trainer = build_trainer(Layout(dtype="float32"))
    (weight, *_), x = weights_of(trainer.stage), torch.randn(3, 1, 32)
    with held(trainer.stage):
        before = product_with(weight, x)
    for shards in trainer.stage.trained:
        shards.master.mul_(2)
        shards.refresh()
    with held(trainer.stage):
        torch.testing.assert_close(product_with(weight, x), 2 * before)
