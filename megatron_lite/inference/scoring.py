"""What given continuations are worth after given contexts: log-probabilities, and whether each token is the likeliest.

    questions -> steps (shared_beginnings.py) -> LanguageModel.score_at -> worths

Every rank of one tensor x pipeline grid asks the same and gets the same; replicas ask what they like and never wait for
each other. Weights must be held meanwhile: `with held(model.stage)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

import torch
from torch import Tensor

from megatron_lite.errors import UsageError
from megatron_lite.inference.model import LanguageModel
from megatron_lite.inference.scheduler import Sizes
from megatron_lite.inference.shared_beginnings import Question, alike, in_order, positions_for, steps

BUDGET = 512  # new tokens of a step


@dataclass(frozen=True)
class Worth:
    """Of each token of a continuation: its log-probability, and whether no other is likelier."""

    log_probabilities: tuple[float, ...]
    greedy: tuple[bool, ...]

    @property
    def total(self) -> float:
        """The continuation's log-probability."""
        return fsum(self.log_probabilities)

    @property
    def is_greedy(self) -> bool:
        return all(self.greedy)


class Scorer:
    """Answers questions beside a cache that it keeps. `computed` counts tokens that went through the model."""

    def __init__(self, model: LanguageModel, budget: int = BUDGET):
        self.model, self.budget, self.computed = model, budget, 0
        sizes = Sizes(positions_for(model.longest, budget), block=1, rows=1, budget=budget)
        self.cache = model.new_cache(sizes)

    def worths(self, questions: Sequence[Question]) -> list[Worth]:
        """One for each. Raises UsageError, before any is computed, for what the model cannot read."""
        for question in questions:
            check_question(question, self.model)
        found: list[list[tuple[float, bool]]] = [[(0.0, False)] * len(one.continuation) for one in questions]
        for step in steps(questions, self.model.longest, self.budget):
            self.computed += step.tokens
            outputs = self.model.score_at(
                step.rows, self._whole([look.place for look in step.looks]),
                self._whole([look.label for look in step.looks]), self.cache,
            )  # fmt: skip
            assert outputs.is_largest is not None
            numbers = zip(outputs.log_probability.tolist(), outputs.is_largest.bool().tolist(), strict=True)
            for look, pair in zip(step.looks, numbers, strict=True):
                found[look.question][look.number] = pair
        return [Worth(*zip(*pairs, strict=True)) for pairs in found]

    def _whole(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.model.device)


def check_question(question: Question, model: LanguageModel) -> None:
    """Raises UsageError for what the model cannot read."""
    size, longest = model.config.model.vocab_size, model.longest
    if not question.context or not question.continuation:
        raise UsageError("a question must have a context and a continuation of a token or more")
    if len(question.read) > longest:
        raise UsageError(
            f"a question of {len(question.read) + 1} tokens: must have at most {longest + 1}, "
            f"since the model was trained on sequences of {longest}"
        )
    if wrong := [token for token in question.context + question.continuation if not 0 <= token < size]:
        raise UsageError(f"a question holds token id {wrong[0]}: model.vocab_size = {size}")


def shares(questions: Sequence[Question], replicas: int) -> list[list[int]]:
    """Numbers of questions for each replica, of about equal work, so that those stay together that begin alike."""
    order = in_order(questions)
    work: list[int] = []
    before: tuple[int, ...] = ()
    for number in order:
        read = questions[number].read
        work.append(len(read) - alike(read, before) + 1)
        before = read
    goal, done = sum(work) / replicas, 0.0
    parts: list[list[int]] = [[] for _ in range(replicas)]
    for number, own in zip(order, work, strict=True):
        parts[min(int((done + own / 2) / goal), replicas - 1)].append(number)
        done += own
    return parts
