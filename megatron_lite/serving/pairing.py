"""Two answers of the model to a question, drawn with seeds of their own: different, and not empty.

Seeds are functions of the question, so a server that starts again on the same checkpoint writes the same answers.
"""

import asyncio
from dataclasses import dataclass
from functools import partial

from megatron_lite.errors import DataError
from megatron_lite.serving.application import Office
from megatron_lite.serving.comparisons import Comparing, Pair, Question, bad_rows, digest, fields_of
from megatron_lite.serving.pieces import joined
from megatron_lite.serving.reading import Asked, Reader
from megatron_lite.serving.records import Row
from megatron_lite.serving.refusals import Refusal

DRAWN = 8  # answers to a question at most, for two that differ


@dataclass(frozen=True)
class Pairing:
    """By the model that the office serves."""

    office: Office
    comparing: Comparing

    async def pair(self, question: Question) -> tuple[Pair, Row] | None:
        """And what a file should say of it. None where the model has no two answers. Raises Refusal."""
        found: dict[str, int] = {}  # seeds, by answer
        for number in range(0, DRAWN, 2):
            seeds = [_seed(question, number), _seed(question, number + 1)]
            texts = await asyncio.gather(*(self._answer(question, seed) for seed in seeds))
            for text, seed in zip(texts, seeds, strict=True):
                if text.strip():
                    found.setdefault(text, seed)
            if len(found) > 1:
                first, second = list(found)[:2]
                how = {"seeds": [found[first], found[second]], "temperature": self.comparing.temperature}
                row = {**fields_of(question.context), "answers": [first, second], **how}
                return Pair(question.context, (first, second)), {**row, "model": self.office.settings.name}
        return None

    async def _answer(self, question: Question, seed: int) -> str:
        office, loop = self.office, asyncio.get_running_loop()
        ask = partial(asked_of, office.reader, self.comparing, question, seed)
        asked = await loop.run_in_executor(office.reading, ask)
        ticket = office.desk.enter(asked)
        try:
            return joined([piece async for piece in office.desk.pieces(ticket)]).text
        finally:
            office.desk.leave(ticket)


def check_questions(reader: Reader, comparing: Comparing) -> None:
    """Raises DataError, which names the rows that the model cannot answer."""
    bad = []
    for question in comparing.questions:
        try:
            asked_of(reader, comparing, question, 0)
        except Refusal as refusal:
            bad.append((question.place, f"cannot be answered: {refusal.reason}"))
    if bad:
        raise DataError(bad_rows(bad))


def asked_of(reader: Reader, comparing: Comparing, question: Question, seed: int) -> Asked:
    return reader.question(question.context, comparing.temperature, seed, comparing.tokens)


def _seed(question: Question, number: int) -> int:
    """Of the n-th answer."""
    return int(digest(question.key, number)[:15], 16)
