"""The model as one that answers: rank 0 asks, all ranks compute, each replica its share of a batch; rank 0 hears all.

    rank 0   ask -> batch to all ranks -> own share -> everyone's answers -> ask -> .. -> end
    others          batch              -> own share -> everyone's answers ->   ..      -> end

All of it goes through the words between ranks (parallel/words.py), where others may wait as long as rank 0 reads data
sets, and hear when a rank fails. Batches are JSON: a kind, and items of it.

    score    [context's ids, continuation's ids]   -> [log-probability, whether every token is the likeliest]
    write    Prompt's fields, in order             -> text
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from math import inf
from typing import Any, Literal

from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.inference.engine import Engine, share_of
from megatron_lite.inference.generation import ROWS, sizes_for
from megatron_lite.inference.model import LanguageModel
from megatron_lite.inference.requests import Limits, Request
from megatron_lite.inference.sampling import Sampling
from megatron_lite.inference.scoring import Scorer, shares
from megatron_lite.inference.shared_beginnings import Question
from megatron_lite.parallel.words import Words

Kind = Literal["score", "write"]
Item = Sequence[Any]  # what JSON can hold, as are answers
Way = Callable[[Sequence[Item]], dict[int, Any]]  # the answers to a replica's share
END = ""
ASKED, ANSWERED = "evaluation.asked", "evaluation.answered"


@dataclass(frozen=True)
class Prompt:
    """A text to continue: `number` is that of its random numbers."""

    ids: tuple[int, ...]
    new: int
    stops: tuple[str, ...]
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    number: int = 0

    def request(self, name: int, tokenizer: Tokenizer) -> Request:
        sampling = Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)
        limits = Limits(self.new, tokenizer.eod_id, tokenizer.vocab_size, tokenizer.stop_ids, tuple(self.stops))
        return Request(name, tuple(self.ids), limits, sampling, drawn_as=self.number)


def question_item(question: Question) -> Item:
    return [question.context, question.continuation]


def prompt_item(prompt: Prompt) -> Item:
    return astuple(prompt)


class Replica:
    """A rank's part. Rank 0 calls `ask`, as often as it likes, then `end`; the others call `follow` once."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, words: Words):
        self.model, self.tokenizer, self.words = model, tokenizer, words
        self.scorer = Scorer(model)
        self._ways: dict[Kind, Way] = {"score": self._scores, "write": self._texts}

    @property
    def number(self) -> int:
        """How many replicas there are."""
        return self.model.mesh.zero.size

    def ask(self, kind: Kind, items: Sequence[Item]) -> list[Any]:
        """Every item's answer."""
        self.words.exchange(json.dumps([kind, items]), ASKED)
        return self._answered(kind, items)

    def end(self) -> None:
        self.words.exchange(END, ASKED)

    def follow(self) -> None:
        """Until rank 0 ends. Raises LostRank when another rank fails."""
        while (batch := self.words.exchange("", ASKED)[0]) != END:
            self._answered(*json.loads(batch))

    def _answered(self, kind: Kind, items: Sequence[Item]) -> list[Any]:
        # One rank of each replica speaks: the others found the same.
        place = self.model.mesh.coordinate
        mine = self._ways[kind](items)
        speaks = place["tensor"] == 0 and place["pipeline"] == 0
        said = self.words.exchange(json.dumps(list(mine.items())) if speaks else "[]", ANSWERED)
        whole = {number: answer for text in said for number, answer in json.loads(text)}
        return [whole[number] for number in range(len(items))]

    def _scores(self, items: Sequence[Item]) -> dict[int, Any]:
        questions = [Question(tuple(context), tuple(continuation)) for context, continuation in items]
        mine = shares(questions, self.number)[self.model.mesh.zero.rank]
        worths = self.scorer.worths([questions[number] for number in mine])
        return {number: [worth.total, worth.is_greedy] for number, worth in zip(mine, worths, strict=True)}

    def _texts(self, items: Sequence[Item]) -> dict[int, Any]:
        mine = share_of(range(len(items)), self.model.mesh)
        requests = [Prompt(*items[number]).request(number, self.tokenizer) for number in mine]
        engine = Engine(self.model, sizes_for(requests, self.model.longest, ROWS), self.tokenizer.decode)
        return {number: samples[0].text for number, samples in zip(mine, engine.run(requests), strict=True)}


@contextmanager
def patient(words: Words) -> Iterator[None]:
    """Ranks wait as long as it takes; that one has failed they hear at once."""
    before, words.patience = words.patience, inf
    try:
        yield
    finally:
        words.patience = before
