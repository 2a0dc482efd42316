"""Shares of the vocabulary and flat shards are multiples of 16 elements; what fills them up is zero and stays it."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from support.checkpoints import outside_sum, train
from support.layouts import (
    Layout,
    assemble,
    build_trainer,
    differences,
    global_batch,
    owned_blocks,
    reshaped,
    run_layout,
)
from support.reference import train as reference_train

from megatron_lite.config import PRESETS, Config, ModelConfig, config_from_tree, resolve
from megatron_lite.model.model import schedule_of
from megatron_lite.model.parameters import Specification
from megatron_lite.optim.schedule import learning_rate
from megatron_lite.parallel.layout import ShardLayout
from megatron_lite.parallel.ledger import ledger
from megatron_lite.planning.sizes import StageSizes
from megatron_lite.planning.traffic import step_traffic

# Heads of 10 numbers; blocks and heads whose weights are no multiple of 16 in all, on one tensor rank and on two.
ODD = {"hidden_size": 20, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
       "num_key_value_heads": 2, "tie_word_embeddings": False}  # fmt: skip
MODELS = {
    **{f"preset {name}": fields for name, fields in PRESETS.items()},
    "50,257 pieces": {**PRESETS["125m"], "vocab_size": 50_257},
    "odd": {**ODD, "vocab_size": 13},
    "odd and tied": {**ODD, "vocab_size": 97, "tie_word_embeddings": True},
}
DATA = range(1, 8)


def config_of(model: dict[str, Any], tensor: int, data: int) -> Config:
    return config_from_tree(
        {
            "model": model,
            "parallel": {"tensor": tensor, "data": data, "zero_regather": "step"},
            "optim": {"lr": 0.1},
            "train": {"steps": 1, "global_batch_size": data, "sequence_length": 32, "run_dir": "unused"},
        }
    )


def units_of(model: ModelConfig, tensor: int, rank: int) -> dict[str, list]:
    """The weights of a unit of each kind."""
    specification = Specification(model, 0.02, tensor, rank)
    head = specification.head(beside_embedding=True)
    return {"embedding": specification.embedding(), "block.0": specification.block(0), "head": head}


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_rows_of_logits_and_shards_over_one_to_seven_ranks_are_multiples_of_16_and_as_the_forms_say(model, tensor):
    for data in DATA:
        config = config_of(model, tensor, data)
        resolved = resolve(config, tensor * data)
        forms = StageSizes(config, resolved, schedule_of(config, resolved, 1), stage=0)
        shards = {one.name: one for one in forms.shards}
        units = units_of(config.model, tensor, tensor - 1)
        assert shards.keys() >= units.keys()
        assert units["embedding"][0].shape[0] == resolved.padded_vocab_size // tensor
        assert resolved.padded_vocab_size // tensor % 16 == 0
        for name, locals_ in units.items():
            layout = ShardLayout(tuple(locals_), data)
            assert layout.size % 16 == 0
            assert 0 <= layout.size - layout.offsets[-1] < 16
            assert forms.shard_size(shards[name]) == layout.size


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 15, 16, 17, 33, 61, 50_257])
def test_each_id_is_one_row_of_one_rank_and_rows_of_padding_are_less_than_16_a_rank(size, tensor):
    model = config_of({**PRESETS["1b"], "vocab_size": size}, 1, 1).model
    shares = [Specification(model, 0.02, tensor, rank).embedding()[0] for rank in range(tensor)]
    ids = [packed.start[0] + row for share in shares for packed in share.packs for row in range(packed.rows)]
    assert ids == list(range(size))
    assert all(share.packs[0].row == 0 for share in shares)
    assert sum(share.shape[0] for share in shares) - size < 16 * tensor


@dataclass(frozen=True)
class Odd(Layout):
    """13 pieces, of which a second tensor rank has none, and shards with a tail on any number of ranks."""

    layers: int = 2
    steps: int = 3

    def config(self, **train: Any) -> Config:
        config = super().config(**train)
        sizes = {**ODD, "vocab_size": 13, "num_hidden_layers": self.layers, "tie_word_embeddings": self.tied}
        return reshaped(config, **sizes)

    def single(self) -> "Odd":
        return Odd(tied=self.tied)


LAYOUTS = [
    Odd(tensor=2),
    Odd(tensor=2, loss_chunk=3, tied=True),
    Odd(data=3, zero_stage=0),
    Odd(data=3, pipeline=2, tied=True),
    Odd(tensor=2, data=2, zero_stage=1, sequence=False),
]


def test_one_process_with_padding_and_tails_trains_as_plain_pytorch_does(singles):
    layout = Odd()
    trainer = build_trainer(layout)
    config = trainer.config
    initial = {name: torch.from_numpy(value) for name, value in assemble([owned_blocks(trainer, "master")]).items()}
    steps = range(1, layout.steps + 1)
    rates = [learning_rate(step, config.optim) for step in steps]
    found = singles[False]
    losses, z_losses, norms, gradients, weights = reference_train(
        initial, [global_batch(step, config) for step in steps], config, rates
    )
    expected = replace(found, losses=losses, z_losses=z_losses, norms=norms, gradients=gradients, weights=weights)
    apart = differences(found, expected)
    assert max(apart.values()) < 1e-10, apart


@pytest.fixture(scope="module")
def singles(ranks):
    return {tied: run_layout(ranks, Odd(tied=tied)) for tied in (False, True)}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_rank_without_an_id_and_shards_with_tails_are_one_process_with_traffic_to_the_byte(ranks, singles, layout):
    outcome = run_layout(ranks, layout)
    found = differences(outcome, singles[layout.tied])
    assert max(found.values()) < 1e-10, found
    config = layout.config()
    resolved = resolve(config, layout.world)
    schedule = layout.schedule_of(config, resolved, resolved.microbatches)
    for rank, events in enumerate(outcome.transcripts):
        forms = step_traffic(config, resolved, schedule, rank // (layout.world // layout.pipeline))
        expected = {key: (layout.steps * calls, layout.steps * size) for key, (calls, size) in forms.items()}
        assert {key: (entry.calls, entry.bytes) for key, entry in ledger(events).items()} == expected, f"rank {rank}"


def padding_after_steps(layout: Layout) -> tuple[list[int], float, float]:
    """(each shard's tail, magnitudes outside of all parameters in masters and moments, in gradients and copies)."""
    trainer = build_trainer(layout)
    train(trainer, range(1, 4))
    tails = [shards.layout.size - shards.layout.offsets[-1] for shards in trainer.stage.shards]
    last = 0.0
    for shards in trainer.stage.shards:
        for flat in (shards.gradient, shards.compute):
            rest = flat.detach().clone()
            for _, box in shards.layout.boxes(shards.sharding.rank):
                rest[box.offset : box.offset + box.size] = 0
            last += rest.abs().sum().item()
    return tails, outside_sum(trainer), last


@pytest.mark.parametrize("layout", [Odd(tensor=2), *LAYOUTS[2:4]], ids=str)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_padding_is_zero_after_three_updates(ranks, layout, dtype):
    for tails, state, last in ranks.run(padding_after_steps, layout.world, replace(layout, dtype=dtype)):
        assert max(tails) > 0
        assert (state, last) == (0, 0)
