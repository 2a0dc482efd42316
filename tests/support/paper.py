"""Steps on paper, for comparison with the closed forms."""

from dataclasses import dataclass

import pytest
import torch
from support.layouts import Layout, reshaped

from megatron_lite.config import Config, resolve
from megatron_lite.inference.model import LanguageModel, language_model_of
from megatron_lite.inference.sampling import Draw, Sampling, choose
from megatron_lite.inference.scheduler import Row, Sizes
from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.model.freezing import NOTHING, Patterns
from megatron_lite.model.model import Model, schedule_of
from megatron_lite.parallel.pipeline.stage import held
from megatron_lite.planning.memory import StorageTracker
from megatron_lite.planning.memory_forms import Memory, peak_memory
from megatron_lite.planning.paper import META, PaperStep, choice_on_paper, fake_world
from megatron_lite.planning.sizes import forward_only


def wide_config(layout: Layout, **train: int) -> Config:
    """The layout on a model whose tensors are large beside what the tracker leaves out."""
    config = layout.config(**{"global_batch_size": 8, "sequence_length": 256, **train})
    sizes = {"hidden_size": 128, "intermediate_size": 344, "num_attention_heads": 8, "num_key_value_heads": 4,
             "vocab_size": 999}  # fmt: skip
    return reshaped(config, **sizes)


def memory_form(
    config: Config, world: int, stage: int, trainable: Patterns | None = None, asked: bool = False
) -> Memory:
    """Of a step, or of the forward pass of a model that is only `asked`."""
    resolved = resolve(config, world)
    schedule = schedule_of(config, resolved, resolved.microbatches)
    return peak_memory(config, resolved, forward_only(schedule) if asked else schedule, stage, trainable)


def ranks_of(layout: Layout) -> list[int]:
    """The last tensor rank of the first stage, which has the vocabulary's padding, and the last rank of all."""
    return sorted({layout.tensor - 1, layout.world - 1})


def assert_memory_is(step: PaperStep, expected: Memory) -> None:
    assert step.peak == pytest.approx(expected.total, rel=0.01)
    assert step.at_peak["state"] == pytest.approx(expected.state, rel=0.005)
    found = {**step.at_peak, "others": step.activations - step.made}
    others = expected.activations + expected.messages + expected.tokens
    wanted = {
        "state": expected.state,
        "weights": expected.weights,
        "gradients": expected.gradients,
        "others": others,
    }
    # The tensor that made the peak belongs to one of them; nobody held it yet.
    missing = [kind for kind in found if abs(found[kind] - wanted[kind]) > 0.01 * step.peak]
    assert len(missing) <= 1, (found, wanted)
    assert all(wanted[kind] - found[kind] == pytest.approx(step.made, abs=0.01 * step.peak) for kind in missing)


@dataclass(frozen=True)
class Holds:
    """Of a rank that generates, in bytes: its weights, and its peak in a step; of that, what the step took."""

    stage: int
    weights: int
    peak: int
    step: int


@torch.no_grad()
def generation_on_paper(config: Config, world: int, rank: int, sequences: int = 1) -> Holds:
    """As many sequences as that draw their last token, as long as the model knows."""
    resolved, tracker = resolve(config, world), StorageTracker(META)
    placement = schedule_of(config, resolved, resolved.microbatches).placement
    with fake_world(rank, world), tracker:
        mesh = build_mesh(MeshShape.of(resolved), META, placement)
        whole = Model(config, resolved, mesh, choice=choice_on_paper(config), trainable=NOTHING)
        model = language_model_of(whole)
        with held(model.stage):
            weights = weight_bytes(model)
            sizes = Sizes(sequences * Sizes(1).blocks_of(model.longest), rows=sequences, budget=sequences)
            cache, tracker.peak = model.new_cache(sizes), 0
            before = tracker.live
            rows = last_tokens(sequences, sizes, model.longest)
            logits = model.next_logits(rows, cache)
            if logits is not None:
                choose(logits, [Draw(Sampling(1.0), 0)] * sequences)
    return Holds(mesh.stage, weights, tracker.peak, tracker.peak - before)


def weight_bytes(model: LanguageModel) -> int:
    """Of the distinct storages behind a stage's shards and its full weights, however small."""
    tensors = [shards.compute for shards in model.stage.shards]
    tensors += [weight.data for shards in model.stage.shards for weight in shards.weights]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def last_tokens(sequences: int, sizes: Sizes, length: int) -> list[Row]:
    """A row for the last token of each sequence, which fills all its blocks."""
    each = sizes.blocks // sequences
    tables = [tuple(range(number * each, (number + 1) * each)) for number in range(sequences)]
    return [Row(number, (0,), length - 1, (0,), table, True) for number, table in enumerate(tables)]
