"""Training with the adapter of flash-attn, on stand-ins that compute, is training with PyTorch's attention: the packed
projection, groups of heads, documents and rings reach the package as it takes them.
"""

import pytest
from megatron_lite.kernels.choice import Choice
from support.kernels.flash_attn import stand_in_for_flash_attn
from support.kernels.stand_ins import recorded
from support.layouts import Layout, RankOutcome, assemble, build_trainer, distance, my_batches, owned_blocks

from megatron_lite.model import model

VERSIONS = {entry["version"][:12]: entry for entry in recorded("flash_attn")}
OLDEST, *_, NEWEST = VERSIONS


def train(layout: Layout, attention: str, version: str) -> tuple[float, RankOutcome]:
    """Loss and gradients of one step in bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in_for_flash_attn(patch, VERSIONS[version])
        choice = Choice("torch", attention, "torch", "torch", "a CPU has no flash-attn to choose")
        patch.setattr(model, "choice_of", lambda config, device: choice)
        trainer = build_trainer(layout)
        result = trainer.gradients(my_batches(trainer, 1))
        return result.loss.item(), RankOutcome(gradients=owned_blocks(trainer, "gradient"))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize(
    ("layout", "bits"),
    [
        (Layout(), True),
        (Layout(documents=True), False),  # the reference takes all documents at once, and rounds otherwise
        (Layout(context=2), True),
        (Layout(context=2, context_kind="ulysses", documents=True), False),
    ],
    ids=["one process", "documents", "ring", "ulysses, documents"],
)
def test_gradients_are_those_of_pytorchs_attention(ranks, layout, version, bits):
    layout = Layout(**{**vars(layout), "dtype": "bfloat16", "layers": 2})
    expected, found = (ranks.run(train, layout.world, layout, name, version) for name in ("sdpa", "flash_attn"))
    assert found[0][0] == pytest.approx(expected[0][0], rel=0 if bits else 2**-8)
    truth, gradients = (assemble([outcome.gradients for _, outcome in results]) for results in (expected, found))
    worst = max(distance(gradients[name], value) for name, value in truth.items())
    assert worst == 0 if bits else worst < 2**-5
