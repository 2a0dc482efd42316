"""Steps on paper, for comparison with the closed forms."""

import pytest
from support.layouts import Layout, reshaped

from megatron_lite.config import Config, resolve
from megatron_lite.model.freezing import Patterns
from megatron_lite.model.model import schedule_of
from megatron_lite.planning.memory_forms import Memory, peak_memory
from megatron_lite.planning.paper import PaperStep
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
