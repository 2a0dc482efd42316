"""The numbers that a configuration and a world size decide."""

from itertools import product
from typing import Any

import pytest

from megatron_lite.config import Config, config_from_tree, resolve
from megatron_lite.config.resolve import split_layers
from megatron_lite.errors import UsageError


def make(**sections: dict[str, Any]) -> Config:
    """A nano model; `make(parallel={...})` updates that section."""
    tree = {
        "model": {"preset": "nano"},
        "parallel": {},
        "optim": {"lr": 1e-3},
        "train": {"steps": 10, "global_batch_size": 8, "sequence_length": 32, "run_dir": "runs/x"},
    }
    return config_from_tree({name: section | sections.get(name, {}) for name, section in tree.items()})


def test_data_takes_what_the_world_leaves() -> None:
    resolved = resolve(make(parallel={"tensor": 2, "pipeline": 2}, train={"micro_batch_size": 2}), 8)
    assert (resolved.tensor, resolved.pipeline, resolved.context, resolved.data) == (2, 2, 1, 2)
    assert resolved.zero_size == 2
    assert resolved.microbatches == 2
    assert resolved.local_batch_size == 4
    assert resolved.tokens_per_step == 8 * 32


@pytest.mark.parametrize(
    ("tensor", "size", "padded"),
    # 50,272 = 3142 x 16 = 1571 x 16 x 2; with 513 pieces 16 more are missing on one rank, and as many on each of two.
    [(1, 511, 512), (2, 511, 512), (1, 512, 512), (1, 513, 528), (2, 513, 544), (1, 50257, 50272), (2, 50257, 50272)],
)
def test_the_vocabulary_is_padded_to_sixteen_pieces_a_tensor_rank(tensor: int, size: int, padded: int) -> None:
    config = make(model={"vocab_size": size}, parallel={"tensor": tensor})
    assert resolve(config, tensor).padded_vocab_size == padded


@pytest.mark.parametrize(
    ("layers", "stages", "expected"),
    [
        (8, 4, (2, 2, 2, 2)),
        (5, 2, (3, 2)),
        (6, 4, (1, 2, 2, 1)),
        (5, 4, (1, 1, 2, 1)),
        (7, 4, (2, 2, 2, 1)),
        (3, 3, (1, 1, 1)),
        (5, 1, (5,)),
        (80, 16, (5,) * 16),
    ],
)
def test_an_uneven_split_spares_the_last_stage_then_the_first(
    layers: int, stages: int, expected: tuple[int, ...]
) -> None:
    assert split_layers(layers, stages, 1, head=0.0) == expected


@pytest.mark.parametrize(
    ("layers", "stages", "chunks", "head", "expected"),
    [
        (8, 2, 1, 1.4, (5, 3)),  # 5 instead of 5.4
        (6, 2, 1, 2.4, (4, 2)),
        (32, 4, 1, 2.1, (8, 9, 9, 6)),
        (16, 4, 1, 4.1, (5, 5, 5, 1)),
        (32, 4, 2, 2.1, (4, 4, 4, 4, 4, 5, 5, 2)),
        (4, 4, 1, 9.0, (1, 1, 1, 1)),
        (80, 8, 1, 1.2, (10,) * 8),  # 11 instead of 11.2 is not worth it
        (80, 8, 5, 1.2, (2,) * 40),  # nor is 3 in one of a stage's five chunks instead of 3.2
        (8, 2, 1, 1.2, (4, 4)),
    ],
)
def test_the_last_stage_has_fewer_blocks_by_the_work_of_its_logits(
    layers: int, stages: int, chunks: int, head: float, expected: tuple[int, ...]
) -> None:
    assert split_layers(layers, stages, chunks, head) == expected


def test_no_split_relieves_the_heaviest_stage_of_more_than_a_twentieth_of_its_work() -> None:
    for layers, stages, tenths in product(range(1, 9), range(1, 5), range(0, 60, 7)):
        if stages > layers:
            continue
        head = tenths / 10

        def heaviest(split: tuple[int, ...], head: float = head) -> float:
            return max(*split[:-1], split[-1] + head, 0)

        splits = [split for split in product(range(1, layers + 1), repeat=stages) if sum(split) == layers]
        found = split_layers(layers, stages, 1, head)
        assert found in splits
        assert heaviest(found) - min(map(heaviest, splits)) < 0.05 * (layers / stages + head)


def test_without_logits_every_split_is_even_to_one_block() -> None:
    for layers in range(1, 40):
        for stages in range(1, layers + 1):
            split = split_layers(layers, stages, 1, head=0.0)
            assert len(split) == stages
            assert sum(split) == layers
            assert max(split) - min(split) <= 1
            assert stages == 1 or split[-1] == min(split)


def test_the_logits_work_is_counted_in_blocks_of_the_model() -> None:
    # A token: a block 4 x 64 x 64 + 3 x 64 x 128 + 64 x (63 + 1) = 45,056 products, the head 64 x 1,408 = 90,112.
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = make(
        model={**sizes, "num_hidden_layers": 8, "vocab_size": 1408}, parallel={"pipeline": 2},
        train={"sequence_length": 63},
    )  # fmt: skip
    assert resolve(config, 2).stage_layers == (5, 3)  # as 5, 3 and the head's 2


def test_float64_runs_keep_and_reduce_everything_in_float64() -> None:
    resolved = resolve(make(train={"dtype": "float64"}), 1)
    assert (resolved.compute_dtype, resolved.master_dtype, resolved.grad_reduce_dtype) == ("float64",) * 3
    resolved = resolve(make(parallel={"grad_reduce_dtype": "bfloat16"}), 1)
    assert (resolved.compute_dtype, resolved.master_dtype, resolved.grad_reduce_dtype) == (
        "bfloat16",
        "float32",
        "bfloat16",
    )


def test_every_third_block_is_recomputed_in_full() -> None:
    assert resolve(make(parallel={"recompute": "every_3"}), 1).recompute == ("full", "none", "none", "full")
    assert resolve(make(parallel={"recompute": "selective"}), 1).recompute == ("selective",) * 4


@pytest.mark.parametrize(
    ("sections", "world_size", "expected"),
    [
        ({"parallel": {"tensor": 3}}, 3, ["parallel.tensor = 3", "model.num_attention_heads = 4"]),
        ({"parallel": {"tensor": 4}}, 4, ["parallel.tensor = 4", "model.num_key_value_heads = 2"]),
        (
            {"parallel": {"tensor": 2}, "model": {"intermediate_size": 161}},
            2,
            ["parallel.tensor = 2", "intermediate_size = 161"],
        ),
        (
            {"parallel": {"tensor": 2}, "train": {"sequence_length": 33}},
            2,
            ["parallel.tensor = 2", "train.sequence_length", "33"],
        ),
        ({"parallel": {"pipeline": 5}}, 5, ["parallel.pipeline = 5", "model.num_hidden_layers = 4"]),
        ({"parallel": {"pipeline": 2}}, 3, ["world size = 3", "multiple of 2"]),
        ({"parallel": {"pipeline": 2, "data": 2}}, 8, ["parallel.data = 2", "= 4", "8"]),
        ({}, 3, ["train.global_batch_size = 8", "multiple of 3"]),
        ({"parallel": {"pipeline": 2, "stage_layers": [2, 1]}}, 2, ["parallel.stage_layers = [2, 1]", "sum to"]),
        ({"parallel": {"pipeline": 2, "stage_layers": [4]}}, 2, ["parallel.stage_layers = [4]", "one entry"]),
        (
            {"parallel": {"pipeline": 2, "virtual_stages": 3}},
            2,
            ["= 2 x parallel.virtual_stages = 3", "layers = 4"],
        ),
        ({"parallel": {"zero_group": 3}}, 4, ["zero_group = 3", "must divide data x context = 4"]),
        ({"parallel": {"zero_group": 2, "zero_stage": 0}}, 4, ["zero_group = 2", "zero_stage = 0"]),
        ({"parallel": {"pipeline": 2, "schedule": "zb_v"}}, 2, ["virtual_stages = 1", "must be 2", "zb_v"]),
        (
            {"parallel": {"pipeline": 2, "schedule": "gpipe", "virtual_stages": 2}},
            2,
            ["virtual_stages = 2", "must be 1"],
        ),
        ({"parallel": {"pipeline": 2, "schedule": "interleaved_1f1b"}}, 2, ["virtual_stages = 1", "2 or more"]),
        (
            {"parallel": {"pipeline": 2, "virtual_stages": 2}, "train": {"global_batch_size": 7}},
            2,
            ["microbatches a step = 7", "multiple of parallel.pipeline = 2"],
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(
    sections: dict[str, Any], world_size: int, expected: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(make(**sections), world_size)
    assert "\n" not in str(caught.value)
    for part in expected:
        assert part in str(caught.value)


def test_without_sequence_parallelism_any_length_goes_with_any_tensor_size() -> None:
    config = make(parallel={"tensor": 2, "sequence": False}, train={"sequence_length": 33})
    assert resolve(config, 2).tensor == 2


def test_given_stage_layers_are_taken() -> None:
    assert resolve(make(parallel={"pipeline": 2, "stage_layers": [1, 3]}), 2).stage_layers == (1, 3)
