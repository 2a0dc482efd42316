"""Who waits for what: requests that were let in, and each token's way to the one who asked. Lives in the event loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.inference.requests import Addition
from megatron_lite.inference.stopping import Detokenizer
from megatron_lite.serving.batch import Batch
from megatron_lite.serving.leading import Report
from megatron_lite.serving.metrics import Metrics
from megatron_lite.serving.pieces import Choice, Piece
from megatron_lite.serving.reading import Asked
from megatron_lite.serving.refusals import Refusal

ENDING = Refusal(503, "the server is about to end", headers={"Retry-After": "10"})
BROKEN = Refusal(500, "the server has failed, and ends")


@dataclass(eq=False)
class Ticket:
    """Of one body that was let in. `unfinished` are samples of it; `numbers` its requests', in the prompts' order.

    What is written waits in `written`. A stream is woken for each piece, a whole answer once: waking a task takes as
    long as a tenth of a small model's step, and the model's thread waits meanwhile.
    """

    asked: Asked
    numbers: tuple[int, ...]
    unfinished: int
    since: float
    written: list[Addition] = field(default_factory=list)
    refused: Refusal | None = None  # why nothing more comes
    news: asyncio.Event = field(default_factory=asyncio.Event)
    first_seen: bool = False

    def put(self, addition: Addition) -> None:
        self.written.append(addition)
        self.unfinished -= addition.finish is not None
        if self.asked.stream or not self.unfinished:
            self.news.set()

    async def taken(self) -> list[Addition]:
        """All that was written since the last time, once there is some. Raises Refusal where nothing more comes."""
        await self.news.wait()
        self.news.clear()
        if self.refused is not None:
            raise self.refused
        taken, self.written = self.written, []
        return taken


@dataclass
class Desk:
    """`most` sequences are held, running or waiting."""

    batch: Batch
    tokenizer: Tokenizer
    metrics: Metrics
    most: int
    closed: Refusal | None = None  # why nobody else is let in
    _open: dict[int, Ticket] = field(default_factory=dict)  # by request number
    _numbers: "count[int]" = field(default_factory=count)
    _sequences: int = 0

    @property
    def idle(self) -> bool:
        return not self._open

    def enter(self, asked: Asked) -> Ticket:
        """Its requests join the batch before the next step. Raises Refusal where there is no room."""
        if self.closed is not None:
            raise self.closed
        if self._sequences + asked.sequences > self.most:
            text = f"{self._sequences} sequences run or wait: at most {self.most} are held"
            raise Refusal(429, text, code="queue_full", headers={"Retry-After": "1"})
        requests = [replace(one, number=next(self._numbers)) for one in asked.requests]
        ticket = Ticket(asked, tuple(one.number for one in requests), asked.sequences, time.monotonic())
        self._sequences += asked.sequences
        self.metrics.prompt_tokens.inc(asked.prompt_tokens)
        for request in requests:
            self._open[request.number] = ticket
            self.batch.join(request)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Whatever of it still runs ends with the next step."""
        if ticket.unfinished:
            for number in ticket.numbers:
                self.batch.leave(number)

    def deliver(self, reports: Sequence[Report]) -> None:
        """After each step."""
        self.metrics.stepped(reports)
        for report in reports:
            for addition in report.additions:
                self._hand_out(addition)

    def close(self, why: Refusal, at_once: bool = False) -> None:
        """Nobody else is let in; with `at_once` those who wait are told the same."""
        self.closed = why
        for ticket in {id(ticket): ticket for ticket in self._open.values()}.values() if at_once else ():
            ticket.refused = why
            ticket.news.set()
            self.leave(ticket)

    async def pieces(self, ticket: Ticket) -> AsyncIterator[Piece]:
        """As they are written, of all choices, to the last. Raises Refusal where the server ends before."""
        asked, choices = ticket.asked, {}
        for place, (number, request) in enumerate(zip(ticket.numbers, asked.requests, strict=True)):
            for sample in range(asked.n):
                placed = bool(request.limits.stop_strings) or request.log_probabilities is not None
                detokenizer = Detokenizer(self.tokenizer.decode, request.prompt) if placed else None
                choices[number, sample] = Choice(place * asked.n + sample, request.limits, detokenizer)
        left = len(choices)
        while left:
            for addition in await ticket.taken():
                left -= addition.finish is not None
                yield choices[addition.request, addition.sample].put(addition)

    def _hand_out(self, addition: Addition) -> None:
        ticket = self._open[addition.request]
        if not ticket.first_seen and addition.token is not None:
            ticket.first_seen = True
            self.metrics.first_token.observe(time.monotonic() - ticket.since)
        ticket.put(addition)
        if addition.finish is not None:
            self._sequences -= 1
            if not ticket.unfinished:
                for number in ticket.numbers:
                    del self._open[number]
