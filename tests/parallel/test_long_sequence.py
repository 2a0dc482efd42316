"""8,192 tokens over four context ranks: one process's gradients, in a quarter of the memory and the ring's buffers."""

import pytest
import torch
from support.layouts import Layout, RankOutcome, assemble, build_trainer, distance, my_batches, owned_blocks

from megatron_lite.planning.memory import StorageTracker, bytes_of

LENGTH = 8192
RING = Layout(context=4, steps=1)


def long_step(layout: Layout) -> tuple[float, RankOutcome, int, int]:
    """(loss, gradients, peak bytes of the step beside the shards, bytes of one rank's keys and values)."""
    config = layout.config(sequence_length=LENGTH, global_batch_size=1)
    trainer = build_trainer(layout, config=config)
    samples = my_batches(trainer, 1)
    tracker = StorageTracker(torch.device("cpu"))
    with tracker:
        result = trainer.gradients(samples)
    weights = bytes_of([weight.full for shards in trainer.stage.shards for weight in shards.weights])
    model = config.model
    key_values = 2 * model.num_key_value_heads * model.head_dim * (LENGTH // layout.context) * 8
    gradients = RankOutcome(gradients=owned_blocks(trainer, "gradient"))
    return result.loss.item(), gradients, tracker.peak - weights, key_values


@pytest.mark.nightly
def test_a_long_sequence_over_four_context_ranks_is_one_process_in_a_quarter_of_the_memory(ranks, capsys):
    loss, one, whole, _ = long_step(RING.single())
    results = ranks.run(long_step, RING.world, RING)
    assert [result[0] for result in results] == pytest.approx([loss] * 4, rel=1e-12)
    expected, found = assemble([one.gradients]), assemble([result[1].gradients for result in results])
    worst = max(distance(found[name], truth) for name, truth in expected.items())
    held, ring = max(result[2] for result in results), results[0][3]
    with capsys.disabled():
        print(f"\none process {whole:,} bytes; a rank of four {held:,}; its keys and values {ring:,}")
    assert worst < 1e-10
    # In backward at most seven blocks of keys and values: the one in hand, the one that leaves and the one that comes,
    # their gradients likewise, and this rank's share of them.
    assert whole / 4 <= held <= whole / 4 + 7 * ring
