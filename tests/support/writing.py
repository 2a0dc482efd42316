"""What a small model writes on a layout, and what it says given tokens are worth, for comparison with one process."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from support.asking import build_to_ask
from support.layouts import Layout

from megatron_lite.inference.engine import Engine, share_of
from megatron_lite.inference.generation import gathered
from megatron_lite.inference.requests import Limits, Request
from megatron_lite.inference.sampling import Sampling
from megatron_lite.inference.scheduler import Row, Sizes
from megatron_lite.model.outputs import stacked
from megatron_lite.parallel.collectives import Event, Recorder
from megatron_lite.parallel.pipeline.stage import held

LENGTH = 16
WAYS = (Sampling(1.0), Sampling(0.7, repetition_penalty=1.5), Sampling(0.0, repetition_penalty=2.0))


@dataclass
class Written:
    """Of one rank: by request the tokens and, of those and the two likeliest, log-probabilities [tokens, 3]; what given
    tokens are worth [4, T]; all replicas' tokens, as they are brought together; the transcript.
    """

    tokens: dict[int, list[int]]
    log_probabilities: dict[int, np.ndarray]
    scores: np.ndarray
    answers: list[list[str]]
    events: list[Event]


def write(layout: Layout) -> Written:
    """This replica's share of some requests. None ends early, so that ranks go on in step whatever they draw."""
    recorder = Recorder()
    model = build_to_ask(layout, recorder, LENGTH)
    recorder.phase = "write"
    requests = [
        Request(number, tuple(range(number, number + 5)), Limits(6), way, log_probabilities=2)
        for number, way in enumerate(WAYS * 4)
    ]
    given = Row(0, tuple(range(3, 3 + LENGTH)), 0, tuple(range(LENGTH)), (0,), False)
    with held(model.stage):
        mine = share_of(requests, model.mesh)
        found = Engine(model, Sizes(blocks=100, block=4)).run(mine)
        labels = torch.arange(LENGTH)
        scores = stacked(model.score([given], labels, model.new_cache(Sizes(1, LENGTH, 1))))
    answers = {request.number: samples[0] for request, samples in zip(mine, found, strict=True)}
    logs = {
        number: np.array([[t.log_probability, *(log for _, log in t.most_likely)] for t in answer.tokens])
        for number, answer in answers.items()
    }
    tokens = {number: answer.ids for number, answer in answers.items()}
    together = gathered([as_line(ids) for ids in tokens.values()], model.mesh)
    return Written(tokens, logs, scores.numpy(), together, recorder.events)


def as_line(tokens: Sequence[int]) -> str:
    """As long whatever they are, so that a wrong one is still a line."""
    return " ".join(f"{token:02}" for token in tokens)


def differences_in_writing(found: Sequence[Written], truth: Written) -> dict[str, float]:
    """Tokens that differ, as a share, and how far numbers are off, at most on any rank."""
    pairs = [(one, number) for one in found for number in one.tokens]
    wrong = [a != b for one, number in pairs for a, b in zip(one.tokens[number], truth.tokens[number], strict=True)]
    logs = [np.abs(one.log_probabilities[number] - truth.log_probabilities[number]).max() for one, number in pairs]
    scores = [np.abs(one.scores - truth.scores).max() for one in found]
    (lines,) = truth.answers
    strangers = [
        share != lines[number :: len(one.answers)] for one in found for number, share in enumerate(one.answers)
    ]
    return {
        "tokens": float(np.mean(wrong)),
        "log-probabilities": float(max(logs)),
        "scores": float(max(scores)),
        "answers": float(np.mean(strangers)),
    }
