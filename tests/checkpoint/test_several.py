"""One checkpoint of a actor, a critic beside it, and what their algorithm has in hand."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import assert_same, error_of, held, owned, spoil, stamp, untrained, whole
from support.layouts import Blocks, Layout
from torch import Tensor

from megatron_lite.checkpoint import Checkpoint, load, load_weights, open_checkpoint, save, state_tensors
from megatron_lite.checkpoint.state import Trainable

Two = tuple[dict[str, Blocks], dict[str, Blocks]]


def pair(layout: Layout) -> tuple[Trainable, dict[str, Trainable]]:
    """A actor and its critic on one mesh."""
    actor = untrained(layout)
    return actor, {"critic": untrained(layout, actor.mesh, head="scalar", num_hidden_layers=3)}


def in_hand() -> dict[str, Tensor]:
    """Rollouts, as it were: integers and floats."""
    generator = torch.Generator().manual_seed(4)
    numbers = torch.randn(3, 5, generator=generator)
    return {
        "tokens": torch.randint(0, 61, (3, 5), generator=generator), "values": numbers.double(),
        "logprobs": numbers.bfloat16().t(), "mask": numbers > 0, "next": torch.tensor(7, dtype=torch.int32),
    }  # fmt: skip


def save_pair(layout: Layout, directory: Path) -> Two:
    actor, others = pair(layout)
    stamp(actor, 3)
    stamp(others["critic"], 5)
    save(directory, actor, 1, 12, others=others, tensors=in_hand(), extra={"kl_coef": 0.07})
    return owned(actor), owned(others["critic"])


def load_pair(layout: Layout, directory: Path) -> Two:
    actor, others = pair(layout)
    critic = others["critic"]
    for one in (actor, critic):
        spoil(one)
    checkpoint = open_checkpoint(directory, actor.mesh)
    progress = load(checkpoint, actor, others)
    assert (progress.step, progress.extra) == (1, {"kl_coef": 0.07})
    assert (actor.optimizer.updates, critic.optimizer.updates) == (3, 5)
    found = state_tensors(checkpoint)
    assert found.keys() == in_hand().keys()
    for name, expected in in_hand().items():
        assert found[name].dtype == expected.dtype and torch.equal(found[name], expected), name
    return held(actor), held(critic)


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    save_pair(Layout(), tmp_path)
    return open_checkpoint(tmp_path, untrained(Layout()).mesh)


def test_policy_critic_and_tensors_come_back_on_another_layout_to_the_bit(ranks, tmp_path):
    wide = Layout(tensor=2, pipeline=2)
    saved = ranks.run(save_pair, 4, wide, tmp_path)
    found = ranks.run(load_pair, 2, Layout(data=2), tmp_path)
    for model in (0, 1):
        assert_same(whole([rank[model] for rank in found]), whole([rank[model] for rank in saved]))


def test_a_checkpoint_with_a_critic_is_the_actors(checkpoint):
    expected, _ = pair(Layout())
    stamp(expected, 3)
    truth = whole([owned(expected)])
    alone = untrained(Layout())
    spoil(alone)
    load(checkpoint, alone)
    assert_same(whole([owned(alone)]), truth)
    asked = untrained(Layout())
    load_weights(checkpoint, asked.config.model, asked.stage, asked.mesh)
    for name, values in whole([owned(asked)])["master"].items():
        assert (values == truth["master"][name]).all(), name
    assert checkpoint.index.model["head"] == "logits"


def test_a_model_that_is_not_there_is_named(checkpoint, tmp_path):
    actor, others = pair(Layout())
    error = error_of(load, checkpoint, actor, {"reward": others["critic"]})
    assert error.endswith("step_1 has no model reward; beside its own it has critic")
    plain = open_checkpoint(save(tmp_path / "plain", actor, 1, 12), actor.mesh)
    assert error_of(load, plain, actor, others).endswith("step_1 has no model critic; beside its own it has none")
    assert state_tensors(plain) == {}


def test_another_critic_is_refused_by_its_fields(checkpoint):
    actor, _ = pair(Layout())
    deeper = untrained(Layout(), actor.mesh, head="scalar")
    assert "is of another model: it has model.num_hidden_layers = 3 (here 4)" in error_of(
        load, checkpoint, actor, {"critic": deeper}
    )


def test_tensors_of_an_algorithm_are_verified_as_weights_are(checkpoint):
    path = checkpoint.path / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    actor, _ = pair(Layout())
    assert "state.safetensors has the checksum" in error_of(open_checkpoint, checkpoint.path, actor.mesh)


@pytest.mark.parametrize("name", ["master", "a/b", "", "Critic"])
def test_a_name_that_could_be_taken_for_something_else_is_refused(tmp_path, name):
    actor, others = pair(Layout())
    with pytest.raises(ValueError, match=f"a model named '{name}': must be a word of small letters"):
        save(tmp_path, actor, 1, 12, others={name: others["critic"]})
    assert not list(tmp_path.iterdir())
