"""How samples are packed, cut into microbatches and dealt out to ranks changes nothing: gradients are those of a plain
model that reads each dialogue alone, and weights after three updates are the same.
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from nccl_replay import replay
from support.layouts import (
    Layout,
    Outcome,
    RankOutcome,
    Tensors,
    assemble,
    build_trainer,
    combine,
    differences,
    distance,
    owned_blocks,
)
from support.reference import logits
from support.rows import VOCABULARY, aligned, made, pairs, write_store
from torch import Tensor

from megatron_lite.alignment.batches import Collator, Sample
from megatron_lite.alignment.dealing import DataRank
from megatron_lite.alignment.dpo import Dpo
from megatron_lite.alignment.feed import RowsFeed
from megatron_lite.alignment.sets import SampleSet
from megatron_lite.alignment.store import Segment, open_store
from megatron_lite.config import AlignedConfig, LoraConfig
from megatron_lite.model.objective import CrossEntropy
from megatron_lite.model.sequences import Sequences
from megatron_lite.optim.schedule import learning_rate
from megatron_lite.parallel.collectives import Recorder

TOLERANCE, STEPS, ROW = 1e-10, 3, 32
# 24 dialogues in 8 rows; every third is trained nearly whole, the others on their last token or little more.
LENGTHS = [30, 2, 27, 5, 25, 3, 24, 8, 20, 2, 18, 17, 12, 2, 10, 9, 2, 7, 6, 2, 5, 4, 3, 2]
PAIRS = [(5, 9), (7, 3), (12, 12), (4, 4), (2, 20), (6, 4), (10, 6), (9, 7)]  # in 4 rows


def dialogues() -> list[list[Segment]]:
    random = np.random.default_rng(5)
    return [[made(length, random, 0.1 if number % 3 else 0.9)] for number, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "dialogues"
    write_store(path, dialogues())
    return path


@dataclass(frozen=True)
class Case:
    """Each step reads the whole set, in packed rows or each sample in one of its own; `micro` of them pass at once."""

    layout: Layout
    packing: bool
    micro: int

    def __str__(self) -> str:
        return f"{self.layout}-{'packed' if self.packing else 'alone'}-{self.micro}"

    @property
    def algorithm(self) -> str:
        return "sft" if self.layout.objective is None else "dpo"

    @property
    def rows(self) -> int:
        alone, packed = {"sft": (len(LENGTHS), 8), "dpo": (len(PAIRS), 4)}[self.algorithm]
        return packed if self.packing else alone

    def config(self) -> AlignedConfig:
        return aligned(
            self.layout,
            self.algorithm,
            {"packing": self.packing},
            global_batch_size=self.rows,
            micro_batch_size=self.micro,
            sequence_length=ROW,
        )


def run(case: Case, prefix: Path, reference: np.ndarray | None = None) -> RankOutcome:
    """Three steps of one rank; its `outputs` are the steps' first denominators."""
    recorder, config = Recorder(), case.config()
    given = [SampleSet("set", 1.0, open_store(prefix), reference)]
    trainer = build_trainer(case.layout, recorder, config, batch=rehearsed(given, config))
    feed = RowsFeed(given, config, DataRank.of(trainer.model))
    outcome = RankOutcome(events=recorder.events)
    for step in range(1, STEPS + 1):
        result = trainer.gradients(feed.microbatches((step - 1) * case.rows, step))
        outcome.losses.append(result.loss.item())
        outcome.norms.append(result.grad_norm.item())
        outcome.outputs.append(result.denominators[0].item())
        if step == 1:
            outcome.gradients = owned_blocks(trainer, "gradient")
        trainer.update(result.grad_norm, learning_rate(step, config.optim))
    feed.close()
    outcome.weights = owned_blocks(trainer, "master")
    return outcome


def rehearsed(given: list[SampleSet], config: AlignedConfig) -> Sequences:
    """What a microbatch is like."""
    feed = RowsFeed(given, config, DataRank(multiple=ROW))
    like = feed.microbatches(0, 1)[0]
    feed.close()
    return like


def outcome_of(ranks, case: Case, *arguments) -> Outcome:
    world = case.layout.world
    results = [run(case, *arguments)] if world == 1 else ranks.run(run, world, case, *arguments)
    assert all(result.reported == results[0].reported for result in results)
    assert all(result.outputs == results[0].outputs for result in results)
    if world > 1:
        replay([result.events for result in results])
    return combine(results)


def alone(layout: Layout = Layout()) -> Case:  # noqa: B008  # it is frozen
    """One process that reads sample by sample."""
    return Case(layout.single(), packing=False, micro=1)


def losses_of(weights: dict[str, Tensor], config: AlignedConfig) -> list[Tensor]:
    """Of each dialogue, read alone by a plain model: -log p of its trained tokens [trained]."""
    losses = []
    for (one,) in dialogues():
        logs = logits(weights, torch.from_numpy(one.tokens)[None, :-1], config.model)[0].log_softmax(-1)
        targets = torch.from_numpy(one.tokens)[1:, None]
        losses.append(-logs.gather(-1, targets)[torch.from_numpy(one.trained)[1:], 0])
    return losses


@pytest.fixture(scope="module")
def plain() -> tuple[Tensors, float, float]:
    """(gradients, loss, its divisor) of the plain model; the loss is a mean over all trained tokens of the step."""
    case = alone()
    weights = initial_weights(case)
    losses = torch.cat(losses_of(weights, case.config()))
    losses.mean().backward()
    return {name: weight.grad.numpy() for name, weight in weights.items()}, losses.mean().item(), len(losses)


def initial_weights(case: Case) -> dict[str, Tensor]:
    found = assemble([owned_blocks(build_trainer(case.layout, config=case.config()), "master")])
    return {name: torch.from_numpy(value).requires_grad_() for name, value in found.items()}


PACKED, ALONE = True, False


def at_night(*cases: Case) -> list:
    return [pytest.param(case, marks=pytest.mark.nightly) for case in cases]


ONE, EIGHT = Layout(), Layout(data=8)
CUBE = Layout(tensor=2, pipeline=2, data=2, zero_stage=2)
CASES = [
    Case(ONE, ALONE, 24),
    Case(ONE, PACKED, 1),
    Case(ONE, PACKED, 8),
    Case(EIGHT, PACKED, 1),
    Case(CUBE, PACKED, 1),
    Case(Layout(context=2), PACKED, 2),
    Case(Layout(context=2, context_kind="ulysses", loss_chunk=3), PACKED, 4),
    *at_night(
        Case(EIGHT, ALONE, 3),
        Case(CUBE, ALONE, 2),
        Case(Layout(context=2, tensor=2), ALONE, 6),
    ),
]


@pytest.fixture(scope="module")
def truth(prefix) -> Outcome:
    return combine([run(alone(), prefix)])


@pytest.mark.parametrize("case", [alone(), *CASES], ids=str)
def test_a_step_is_that_of_dialogues_read_one_by_one(ranks, prefix, plain, truth, case):
    gradients, loss, divisor = plain
    found = outcome_of(ranks, case, prefix)
    assert found.outputs == [divisor] * STEPS  # every trained token is counted once, on context ranks too
    assert found.losses[0] == pytest.approx(loss, rel=TOLERANCE)
    assert max(distance(found.gradients[name], gradients[name]) for name in gradients) < TOLERANCE
    assert max(differences(found, truth).values()) < TOLERANCE


def test_a_mean_of_microbatches_means_would_be_another_loss_and_another_gradient(plain):
    """What the tests above would not pass: these dialogues tell the two means apart."""
    gradients, loss, _ = plain
    case = alone()
    weights = initial_weights(case)
    wrong = torch.stack([one.mean() for one in losses_of(weights, case.config())]).mean()
    wrong.backward()
    assert abs(wrong.item() / loss - 1) > 0.01
    assert max(distance(weight.grad.numpy(), gradients[name]) for name, weight in weights.items()) > 0.3


DRAWING = Layout(
    lora=LoraConfig(rank=3, alpha=5.0, dropout=0.3, targets=("q_proj", "v_proj", "o_proj", "down_proj")), neftune=5.0
)
DRAWN = [
    Case(DRAWING, PACKED, 1),
    Case(replace(DRAWING, tensor=2, pipeline=2, data=2, recompute="full"), PACKED, 2),
    *at_night(
        Case(replace(DRAWING, data=8), ALONE, 3),
        Case(replace(DRAWING, context=2), PACKED, 4),
    ),
]


@pytest.fixture(scope="module")
def drawn(prefix) -> Outcome:
    return combine([run(alone(DRAWING), prefix)])


@pytest.mark.parametrize("case", DRAWN, ids=str)
def test_dropout_and_noise_belong_to_a_token_of_a_sample_wherever_it_lies(ranks, prefix, drawn, case):
    assert max(differences(outcome_of(ranks, case, prefix), drawn).values()) < TOLERANCE


def test_dropout_and_noise_change_from_step_to_step_and_are_not_there_in_validation(prefix):
    config = Case(DRAWING, PACKED, 8).config()
    trainer = build_trainer(DRAWING, config=config)
    feed = RowsFeed([SampleSet("set", 1.0, open_store(prefix))], config, DataRank.of(trainer.model))
    first, again, later = (trainer.gradients(feed.microbatches(0, step)).loss.item() for step in (1, 1, 2))
    still = trainer.evaluate(feed.microbatches(0, 1)).loss.item()
    feed.close()
    assert first == again
    assert min(abs(first - later), abs(first - still), abs(later - still)) > 1e-3


PREFERRED = Layout(objective=Dpo(0.3, nll_weight=0.5))
PREFERENCES = [
    Case(PREFERRED, PACKED, 4),
    *at_night(
        Case(replace(PREFERRED, data=4), PACKED, 1),
        Case(replace(PREFERRED, tensor=2, pipeline=2, data=2), ALONE, 2),
        Case(replace(PREFERRED, context=2), PACKED, 2),
    ),
]


@pytest.mark.parametrize("case", PREFERENCES, ids=str)
def test_a_step_over_pairs_is_the_same_whatever_rows_they_lie_in(ranks, tmp_path, case):
    write_store(tmp_path / "pairs", pairs(PAIRS), margins=[0.0] * len(PAIRS))
    reference = np.random.default_rng(0).normal(-20, 3, (len(PAIRS), 2))
    expected = combine([run(alone(PREFERRED), tmp_path / "pairs", reference)])
    found = outcome_of(ranks, case, tmp_path / "pairs", reference)
    assert found.outputs == [len(PAIRS)] * STEPS
    assert max(differences(found, expected).values()) < TOLERANCE


def gradients_of(sequences: Sequences) -> Tensors:
    trainer = build_trainer(ONE, config=alone().config())
    trainer.gradients([sequences])
    return assemble([owned_blocks(trainer, "gradient")])


def row(*segments: Segment) -> Sequences:
    return Collator(VOCABULARY, ROW)([[Sample([one], number) for number, one in enumerate(segments)]])


def untrained(one: Segment) -> Segment:
    return Segment(one.tokens, np.zeros_like(one.trained))


def test_a_documents_gradient_depends_on_no_neighbour():
    random = np.random.default_rng(1)
    one, before, after = (made(length, random) for length in (9, 7, 12))
    alone_, between = row(one), row(untrained(before), one, untrained(after))
    gradients, expected = gradients_of(between), gradients_of(alone_)
    assert max(distance(gradients[name], expected[name]) for name in expected) < TOLERANCE
    seen = gradients["model.embed_tokens.weight"].any(1).nonzero()[0].tolist()
    last = int(one.tokens[-1])  # it predicts nothing, so nothing reaches it where it stands nowhere else
    assert seen == sorted({*one.tokens.tolist()} - ({last} if last not in one.tokens[:-1] else set()))


def test_padding_adds_exactly_nothing_whatever_stands_there():
    random = np.random.default_rng(2)
    sequences = row(made(9, random, least=1), made(7, random, least=1))
    padding = sequences.documents == 2
    others = torch.from_numpy(random.integers(1, VOCABULARY, (1, ROW)))
    filled = replace(sequences, tokens=torch.where(padding, others, sequences.tokens))
    gradients, expected = gradients_of(filled), gradients_of(sequences)
    assert all((gradients[name] == expected[name]).all() for name in expected)
    assert not expected["model.embed_tokens.weight"][0].any()


@pytest.mark.nightly
@pytest.mark.parametrize(
    "case",
    [
        Case(Layout(tensor, pipeline, data, context, kind, schedule=schedule, zero_stage=zero), packing, 1)
        for tensor, pipeline, data, context in product((1, 2), repeat=4)
        for kind in (("ring", "ulysses") if context > 1 else ("ring",))
        for schedule in (("1f1b", "zb_h1") if pipeline > 1 else ("1f1b",))
        for zero in ((1, 3) if data > 1 else (3,))
        for packing in (PACKED, ALONE)
        if 1 < tensor * pipeline * data * context <= 8
    ],
    ids=str,
)
def test_a_step_is_that_of_dialogues_read_one_by_one_on_every_layout(ranks, prefix, truth, case):
    assert max(differences(outcome_of(ranks, case, prefix), truth).values()) < TOLERANCE


def test_the_objective_of_fine_tuning_is_the_mean_over_trained_tokens():
    assert build_trainer(ONE, config=alone().config()).objective == CrossEntropy(0.0)
