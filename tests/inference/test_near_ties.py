"""Sampled text where numbers round: what differs between layouts or batches does so only at a near tie of the draw.

A draw is a race, won by the largest probability / exponential number; the exponential numbers are the same everywhere.
So a token may be another one only where two are level but for rounding, and after it that text is not compared further.
In bfloat16 there are many such places, in float32 hardly any.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from inference.test_engine import LAYOUTS, LONGEST, requests
from support.asking import build_to_ask
from support.layouts import Layout
from torch import Tensor

from megatron_lite.inference.engine import Engine, share_of
from megatron_lite.inference.model import LanguageModel
from megatron_lite.inference.random_numbers import exponentials
from megatron_lite.inference.requests import Limits, Request
from megatron_lite.inference.sampling import Sampling
from megatron_lite.inference.scheduler import Sizes
from megatron_lite.model.splitmix import key_of
from megatron_lite.parallel.pipeline.stage import held

pytestmark = pytest.mark.nightly
ONE_BY_ONE, ROOMY, FEW = Sizes(blocks=50, rows=1), Sizes(blocks=500), Sizes(blocks=80, block=3, rows=32, budget=48)
LEVEL = {"float32": 1e-4, "bfloat16": 0.1}  # how far behind the winner another may be, of the winner's score
SAMPLES = 50
Texts = dict[int, list[list[int]]]  # by request, of each sample


def asked(seed: int = 0) -> list[Request]:
    """With nothing but a temperature: what a filter's edge leaves out is no matter of the race."""
    prompts = [request.prompt for request in requests()]
    return [
        Request(number, prompt, Limits(LONGEST), Sampling((0.7, 1.0, 1.5)[number % 3]), seed, SAMPLES)
        for number, prompt in enumerate(prompts)
    ]


def each_alone(model: LanguageModel, asked: list[Request], sizes: Sizes) -> Texts:
    """Each request in an engine of its own."""
    return {one.number: [sample.ids for sample in Engine(model, sizes).run([one])[0]] for one in asked}


def in_a_batch(model: LanguageModel, asked: list[Request]) -> Texts:
    """All at once, with so few blocks that some give way."""
    engine = Engine(model, FEW)
    found = {one.number: [s.ids for s in made] for one, made in zip(asked, engine.run(asked), strict=True)}
    assert engine.scheduler.totals.gave_way > 0
    return found


def both_ways(layout: Layout) -> tuple[Texts, Texts]:
    """On this rank, of its replica."""
    model = build_to_ask(layout, length=LONGEST)
    mine = list(share_of(asked(), model.mesh))
    with held(model.stage):
        return each_alone(model, mine, ROOMY), in_a_batch(model, mine)


def scores(model: LanguageModel, request: Request, sample: int, written: list[int]) -> Tensor:
    """Of each token in the race for the next one: float64 [V], the winner's 1."""
    logits = model.logits(torch.tensor([*request.prompt, *written]))
    assert logits is not None
    key = key_of(request.seed, request.number, sample, len(request.prompt) + len(written))
    probabilities = (logits[-1].double() / request.sampling.temperature).softmax(-1)
    race = probabilities / exponentials([key], len(probabilities), logits.device)[0]
    return race / race.max()


def behind(model: LanguageModel, ours: Texts, truth: Texts) -> Iterator[float]:
    """At each text's first difference: how far the two tokens are from the winner at most, of its score."""
    everyones = asked()
    for number, samples in ours.items():
        request = everyones[number]
        for sample, (one, other) in enumerate(zip(samples, truth[number], strict=True)):
            assert len(one) == len(other) == LONGEST - len(request.prompt)
            for place, pair in enumerate(zip(one, other, strict=True)):
                if pair[0] != pair[1]:
                    yield 1 - scores(model, request, sample, other[:place])[list(pair)].min().item()
                    break


@pytest.fixture(scope="module", params=LEVEL)
def single(request) -> Iterator[tuple[str, dict[bool, tuple[LanguageModel, Texts]]]]:
    """The kind of numbers; one process's model, and its texts sample by sample, by whether the embedding is tied."""
    models = {tied: build_to_ask(Layout(tied=tied, dtype=request.param), length=LONGEST) for tied in (False, True)}
    with held(models[False].stage), held(models[True].stage):
        yield request.param, {tied: (one, each_alone(one, asked(), ONE_BY_ONE)) for tied, one in models.items()}


@pytest.mark.parametrize("layout", [Layout(), *LAYOUTS], ids=lambda one: str(one).rpartition("_")[0])
def test_texts_differ_only_where_the_draw_is_a_near_tie(single, ranks, layout):
    dtype, by_tied = single
    model, truth = by_tied[layout.tied]
    layout = replace(layout, dtype=dtype)
    for way, found in zip(("alone", "in a batch"), zip(*run(ranks, layout), strict=True), strict=True):
        texts: Texts = {number: samples for rank in found for number, samples in rank.items()}
        assert texts.keys() == truth.keys()
        assert all(texts[number] == rank[number] for rank in found for number in rank)
        lags = list(behind(model, texts, truth))
        most = f", at most {max(lags):.1e} behind" if lags else ""
        print(f"{layout} {way}: {len(lags)} of {len(texts) * SAMPLES} texts differ{most}")
        assert all(lag < LEVEL[dtype] for lag in lags)


def run(ranks, layout: Layout) -> list[tuple[Texts, Texts]]:
    return [both_ways(layout)] if layout.world == 1 else ranks.run(both_ways, layout.world, layout, timeout=400)


def test_texts_of_another_seed_are_no_near_ties(single):
    dtype, by_tied = single
    model, truth = by_tied[False]
    lags = list(behind(model, each_alone(model, asked(seed=1), ROOMY), truth))
    assert len(lags) == len(truth) * SAMPLES
    assert sum(lag < LEVEL[dtype] for lag in lags) < len(lags) / 10
