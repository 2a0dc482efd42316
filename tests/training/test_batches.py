"""Batches with columns: documents packed into rows, microbatches of other lengths, ranks with fewer of them."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nccl_replay import replay
from support.layouts import Blocks, Layout, assemble, build_trainer, distance, owned_blocks
from support.reference import Packing
from support.reference import logits as plain_logits
from torch import Tensor

from megatron_lite.config import config_from_tree, resolve
from megatron_lite.errors import UsageError
from megatron_lite.model.objective import CrossEntropy
from megatron_lite.model.outputs import Outputs
from megatron_lite.model.sequences import Column, Sequences, padded
from megatron_lite.parallel.collectives import Event, Recorder
from megatron_lite.parallel.statistics import LOSS, Statistics

VOCABULARY, PAIRS = 61, 2
LAYOUTS = [
    Layout(),
    Layout(data=2),
    Layout(tensor=2, pipeline=2, context=2, schedule="zb_h1", loss_chunk=5),
    Layout(tensor=2, pipeline=2, data=2, loss_chunk=3, recompute="selective"),
    Layout(pipeline=2, context=2, context_kind="ulysses", schedule="zb_v", virtual_stages=2, sequence=False),
]


@dataclass(frozen=True)
class PackedPreference:
    """DPO's loss over documents in pairs, the first of each preferred: -log sigmoid(beta (d_1 - d_2)), d being a
    document's log-probability less that of a reference, which is a column (Rafailov et al. 2023, arXiv 2305.18290,
    equation 7). A row holds PAIRS of them, `there` says which.
    """

    beta: float = 0.3
    temperature: ClassVar[float] = 1.0
    statistics: ClassVar[Statistics] = LOSS
    sums: ClassVar[tuple[str, ...]] = ("loss",)
    maxima: ClassVar[tuple[str, ...]] = ("margin",)
    columns: ClassVar[tuple[Column, ...]] = (
        Column("reference", "document", torch.float64),
        Column("there", "document", torch.bool),
        Column("share", "token", torch.float64),
    )

    def denominators(self, sequences: Sequences) -> Tensor:
        return sequences.columns["there"][:, 0::2].sum(dtype=torch.float64).unsqueeze(0)

    def token_weights(self, sequences: Sequences, denominators: Tensor) -> None:
        return None

    def loss(self, outputs: Outputs, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        weighted = sequences.columns["share"] * outputs.log_probability
        better = sequences.by_document(weighted, 2 * PAIRS) - sequences.columns["reference"]
        margin = torch.where(sequences.columns["there"][:, 0::2], self.beta * (better[:, 0::2] - better[:, 1::2]), 0.0)
        loss = torch.where(sequences.columns["there"][:, 0::2], -F.logsigmoid(margin), 0.0).sum() / denominators[0]
        return loss, {"loss": loss.detach(), "margin": margin.detach().amax()}


def batch(number: int) -> Sequences:
    """Two rows, each of one or two pairs of documents and a rest that belongs to none; rows of 16, 24 or 32 tokens."""
    random, length = np.random.default_rng(number), 16 + 8 * (number % 3)
    tokens = torch.from_numpy(random.integers(0, VOCABULARY, (2, length)))
    labels, documents, positions = torch.full_like(tokens, -1), torch.zeros_like(tokens), torch.zeros_like(tokens)
    there = torch.zeros(2, 2 * PAIRS, dtype=torch.bool)
    for row in range(2):
        count = 2 * random.integers(1, PAIRS + 1)
        ends = np.cumsum(random.integers(2, length // count + 1, count))
        there[row, :count] = True
        for document, (begin, end) in enumerate(zip([0, *ends], [*ends, length], strict=True)):
            documents[row, begin:end], positions[row, begin:end] = document, torch.arange(end - begin)
            if document < count:
                labels[row, begin : end - 1] = tokens[row, begin + 1 : end]
    columns = {
        "reference": torch.from_numpy(random.normal(size=(2, 2 * PAIRS))),
        "there": there,
        "share": torch.from_numpy(random.uniform(0.5, 1.5, (2, length))),
    }
    return Sequences(tokens, labels, VOCABULARY, documents, positions, columns)


@dataclass
class Found:
    """Of one rank."""

    weights: Blocks
    gradients: Blocks
    numbers: dict[str, float]
    first: list[list[Tensor]] | None
    events: list[Event]


ALL = 5  # microbatches; with two data ranks the second has one fewer, and an empty one


def run(layout: Layout) -> Found:
    recorder = Recorder()
    trainer = build_trainer(layout, recorder, batch=batch(0))
    every = [batch(number) for number in range(ALL)]
    count = -(-ALL // layout.data)
    mine = padded(every[trainer.mesh.coordinate["data"] * count :][:count], count)
    weights = owned_blocks(trainer, "master")
    first = trainer.model.outputs_on_first(mine, trainer.objective)
    result = trainer.gradients(mine)
    numbers = {name: value.item() for name, value in result.numbers.items()}
    return Found(weights, owned_blocks(trainer, "gradient"), numbers, first, recorder.events)


def plain(weights: dict[str, Tensor], layout: Layout) -> tuple[Tensor, list[Tensor]]:
    """(loss, log-probabilities of each microbatch), each pair of documents from a plain model's logits."""
    losses, logs = [], []
    for one in map(batch, range(ALL)):
        packing = Packing(one.documents, one.positions)
        log = plain_logits(weights, one.tokens, layout.config().model, packing).log_softmax(-1)
        log = log.gather(-1, one.labels.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (one.labels >= 0)
        logs.append(log)
        for row, document in one.columns["there"].nonzero().tolist():
            if document % 2 == 0:
                scores = [
                    (one.columns["share"] * log)[row][one.documents[row] == d].sum() - one.columns["reference"][row, d]
                    for d in (document, document + 1)
                ]
                losses.append(torch.log1p(torch.exp(-0.3 * (scores[0] - scores[1]))))
    return torch.stack(losses).mean(), logs


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_packed_pairs_of_unequal_lengths_have_the_gradients_of_a_plain_model(ranks, layout):
    layout = replace(layout, objective=PackedPreference())
    found = [run(layout)] if layout.world == 1 else ranks.run(run, layout.world, layout)
    weights = {name: torch.from_numpy(w).requires_grad_() for name, w in assemble([r.weights for r in found]).items()}
    loss, logs = plain(weights, layout)
    loss.backward()
    gradients = assemble([rank.gradients for rank in found])
    errors = {name: distance(gradients[name], weight.grad.numpy()) for name, weight in weights.items()}
    assert max(errors.values()) < 1e-10, errors
    assert all(rank.numbers["loss"] == pytest.approx(loss.item(), rel=1e-10) for rank in found)
    # Every rank's outputs come to the first, and to no other.
    assert [rank.first is None for rank in found] == [False] + [True] * (layout.world - 1)
    count = -(-ALL // layout.data)
    for data, theirs in enumerate(found[0].first):
        assert len(theirs) == count
        for ours, expected in zip(theirs, logs[data * count :], strict=False):
            assert (ours[0] - expected).abs().max() < 1e-10
    if layout.world > 1:
        replay([rank.events for rank in found])


def test_a_microbatch_that_was_filled_up_counts_nothing_and_keeps_every_column():
    one = batch(0)
    added = padded([one], 3)[2]
    assert added.tokens.shape == one.tokens.shape
    assert not added.counted.any()
    assert PackedPreference().denominators(added) == 0
    assert {name: values.dtype for name, values in added.columns.items()} == {
        name: values.dtype for name, values in one.columns.items()
    }
    with pytest.raises(ValueError, match="3 microbatches: must be 1 to 2, so many as every data rank runs"):
        padded([one] * 3, 2)


def wrong(name: str, values: Tensor | None) -> Sequences:
    one = batch(0)
    columns = {key: column for key, column in one.columns.items() if key != name}
    return replace(one, columns=columns if values is None else columns | {name: values})


@pytest.mark.parametrize(
    ("name", "values", "line"),
    [
        ("share", None, "column share is missing: the objective wants it for every token"),
        (
            "share",
            torch.zeros(2, 15, dtype=torch.float64),
            r"column share is torch.float64 \[2, 15\]: must be .* \[2, 16",
        ),
        ("share", torch.zeros(2, 16), r"column share is torch.float32 \[2, 16\]: must be torch.float64"),
        (
            "there",
            torch.zeros(3, 4, dtype=torch.bool),
            r"column there is torch.bool \[3, 4\]: must be .* \[2, documents",
        ),
    ],
)
def test_a_column_that_is_missing_or_of_another_form_is_refused_by_name(name, values, line):
    model = build_trainer(Layout()).model
    with pytest.raises(ValueError, match=line):
        model.microbatches([wrong(name, values)], PackedPreference())


@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize(("context", "kind"), [(1, "ring"), (2, "ring"), (2, "ulysses")])
def test_a_microbatchs_length_must_divide_as_the_configurations_must(ranks, context, kind, sequence):
    layout = Layout(tensor=2, context=context, context_kind=kind, sequence=sequence)
    (multiple, *_) = ranks.run(multiple_of, layout.world, layout)
    for length in range(1, 17):
        tree = layout.config().model_dump(mode="json")
        config = config_from_tree(tree | {"train": tree["train"] | {"sequence_length": length}})
        fits = True
        try:
            resolve(config, layout.world)
        except UsageError:
            fits = False
        assert fits == (length % multiple == 0)


def multiple_of(layout: Layout) -> int:
    model = build_trainer(layout).model
    uneven = torch.zeros(1, model.multiple + 1, dtype=torch.int64)
    if model.multiple > 1:
        with pytest.raises(
            ValueError, match=f"of {model.multiple + 1} positions: must be a multiple of {model.multiple}"
        ):
            model.microbatches([Sequences(uneven, uneven, VOCABULARY)], CrossEntropy())
    return model.multiple
