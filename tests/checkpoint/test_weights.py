"""Weights alone, into a model that may differ from the stored one in what is declared and in nothing else."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import error_of, held, owned, spoil, stamp, untrained, whole
from support.layouts import Blocks, Layout

from megatron_lite.checkpoint import fill, load_weights, open_checkpoint, save
from megatron_lite.checkpoint.state import training_state

SMALL = Layout(layers=2)
WIDE = Layout(tensor=2, pipeline=2)
SCALAR = {"head": "scalar", "tie_word_embeddings": False}
DECLARED = {"missing": ("score.weight",), "extra": ("lm_head.weight",)}


def save_language_model(layout: Layout, directory: Path) -> dict[str, Blocks]:
    trainer = untrained(layout)
    stamp(trainer, 3)
    save(directory, trainer, 1, 12)
    return owned(trainer)


def load_scalar(layout: Layout, directory: Path) -> tuple[dict[str, Blocks], dict[str, Blocks]]:
    """What a scalar model held before and after."""
    trainer = untrained(layout, **SCALAR)
    before = held(trainer)
    checkpoint = open_checkpoint(directory, trainer.mesh)
    load_weights(checkpoint, trainer.config.model, trainer.stage, trainer.mesh, **DECLARED)
    assert trainer.optimizer.updates == 0
    return before, held(trainer)


@pytest.mark.parametrize("tied", [False, True])
def test_a_scalar_model_begins_with_a_language_models_weights_but_for_its_head(ranks, tmp_path, tied):
    truth = whole(ranks.run(save_language_model, 4, Layout(tensor=2, pipeline=2, tied=tied), tmp_path))
    results = ranks.run(load_scalar, 2, Layout(data=2), tmp_path)
    before, after = (whole([result[i] for result in results]) for i in (0, 1))
    assert truth["master"].keys() - after["master"].keys() == (set() if tied else {"lm_head.weight"})
    for name, values in after["master"].items():
        expected = before["master"][name] if name == "score.weight" else truth["master"][name]
        assert (values == expected).all(), name
    for name, values in after["exp_avg"].items():
        assert (values == 0).all(), name


def errors_of_scalar(layout: Layout, directory: Path) -> list[str]:
    trainer = untrained(layout, **SCALAR)
    arguments = open_checkpoint(directory, trainer.mesh), trainer.config.model, trainer.stage, trainer.mesh
    return [error_of(load_weights, *arguments, **{name: DECLARED[name]}) for name in DECLARED]


def test_every_rank_names_what_was_not_declared_whichever_stage_it_lies_on(ranks, tmp_path):
    save_language_model(Layout(), tmp_path)
    errors = ranks.run(errors_of_scalar, 4, WIDE, tmp_path)
    assert errors[0] == errors[1] == errors[2] == errors[3]
    unused, lacking = errors[0]
    assert unused.endswith(
        "step_1 has the parameter lm_head.weight, which the model does not use; "
        "extra = [] does not allow that, extra = ['lm_head.weight'] would"
    )
    assert lacking.endswith(
        "step_1 has no parameter score.weight, which the model needs; "
        "missing = [] does not allow that, missing = ['score.weight'] would"
    )


@pytest.fixture
def checkpoint(tmp_path):
    save_language_model(SMALL, tmp_path)
    return open_checkpoint(tmp_path, untrained(SMALL).mesh)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_theta": 5e5}, "model.rope_theta = 10000.0 (here 500000.0)"),
        ({"rms_norm_eps": 1e-6}, "model.rms_norm_eps = 1e-05 (here 1e-06)"),
        ({"vocab_size": 60}, "model.vocab_size = 61 (here 60)"),
        ({"num_hidden_layers": 3}, "model.num_hidden_layers = 2 (here 3)"),
    ],
)
def test_another_model_is_refused_whatever_is_declared(checkpoint, change, said):
    trainer = untrained(SMALL, **change, **SCALAR)
    error = error_of(
        load_weights, checkpoint, trainer.config.model, trainer.stage, trainer.mesh, missing=("*",), extra=("*",)
    )
    assert f"is of another model: it has {said}; they must be equal" in error


def test_many_names_are_counted_and_allowed_by_few_patterns(checkpoint):
    stored = checkpoint.index.main.parameters
    for layer in range(2):
        del stored[f"model.layers.{layer}.mlp.up_proj.weight"]
    trainer = untrained(SMALL)
    arguments = checkpoint, trainer.config.model, trainer.stage, trainer.mesh
    error = error_of(load_weights, *arguments, missing=("*.bias",))
    assert "has no parameter model.layers.0.mlp.up_proj.weight, which the model needs, and 1 more; " in error
    assert error.endswith("missing = ['*.bias', 'model.layers.*.mlp.up_proj.weight'] would")
    load_weights(*arguments, missing=("*.bias", "model.layers.*.mlp.up_proj.weight"))


@pytest.mark.parametrize(("stored", "here"), [("bfloat16", "float64"), ("float64", "bfloat16")])
@pytest.mark.parametrize("most", [1, 100, 1 << 22])
def test_numbers_are_the_same_however_few_bytes_are_read_at_a_time(tmp_path, monkeypatch, stored, here, most):
    source = untrained(Layout(layers=2, dtype=stored))
    stamp(source, 5)
    save(tmp_path, source, 1, 12)
    monkeypatch.setattr(fill, "SLICE", most)
    target = untrained(Layout(layers=2, dtype=here))
    spoil(target)
    load_weights(open_checkpoint(tmp_path, target.mesh), target.config.model, target.stage, target.mesh)
    for (ours, mine), (_, theirs) in zip(training_state(target), training_state(source), strict=True):
        assert torch.equal(mine["master"], theirs["master"].to(mine["master"].dtype))
        assert torch.equal(ours.compute, mine["master"].to(ours.compute.dtype))
