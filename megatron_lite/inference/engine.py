"""A running batch on a mesh: plan, one forward pass, draw, tell everyone; and again.

    scheduler -> rows -> LanguageModel -> logits, where the model ends -> drawn tokens, everywhere -> scheduler

Every rank of one tensor x pipeline grid adds the same requests between the same steps. Each runs the same scheduler, so
all know which tokens go through the model without a word about it; what travels is activations, logits over tensor
ranks, and what was drawn. Data and context ranks are replicas with requests of their own (`share_of`). Weights must be
held meanwhile: `with held(model.stage)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

import torch
from torch import Tensor

from megatron_lite.errors import UsageError
from megatron_lite.inference.model import LanguageModel
from megatron_lite.inference.requests import Addition, Completion, Finish, Listener, Request, Token
from megatron_lite.inference.sampling import Draw, choose, log_probabilities
from megatron_lite.inference.scheduler import Row, Scheduler, Sizes
from megatron_lite.inference.stopping import Decode, Detokenizer, StopStrings
from megatron_lite.mesh import Mesh
from megatron_lite.model.splitmix import key_of

T = TypeVar("T")


def share_of(requests: Sequence[T], mesh: Mesh) -> Sequence[T]:
    """Those of this replica, of the data x context ranks."""
    return requests[mesh.zero.rank :: mesh.zero.size]


def check_request(request: Request, model: LanguageModel) -> None:
    """Raises UsageError for what the model cannot continue."""
    prompt, size, longest = request.prompt, model.config.model.vocab_size, model.longest
    if not 0 < len(prompt) < longest:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens: must have 1 to {longest - 1}, "
            f"since the model was trained on sequences of {longest}"
        )
    if wrong := [token for token in prompt if not 0 <= token < size]:
        raise UsageError(f"the prompt holds token id {wrong[0]}: model.vocab_size = {size}")
    if wrong := [token for token in request.sampling.logit_bias if token >= size]:
        raise UsageError(f"logit_bias has token id {wrong[0]}: model.vocab_size = {size}")


@dataclass
class _Sample:
    """One sample of a request while it is written."""

    request: Request
    number: int
    stops: StopStrings
    detokenizer: Detokenizer | None
    listener: Listener | None
    tokens: list[Token] = field(default_factory=list)
    text: str = ""

    @property
    def length(self) -> int:
        return len(self.request.prompt) + len(self.tokens)

    def draw(self) -> Draw:
        """How its next token is drawn."""
        request = self.request
        number = request.number if request.drawn_as is None else request.drawn_as
        key = key_of(request.seed, number, self.number, self.length)
        return Draw(request.sampling, key, request.prompt, [t.id for t in self.tokens], request.limits.vocab_size)

    def put(self, token: Token, longest: int) -> Completion | None:
        """Its next token; the whole, if it ends with it."""
        self.tokens.append(token)
        limits = self.request.limits
        ends = limits.ends_at(token.id)
        text = "" if ends or self.detokenizer is None else self.stops.put(self.detokenizer.put(token.id))
        if ends or self.stops.found is not None:
            return self._end(token, text, "stop", token.id if ends else self.stops.found)
        if len(self.tokens) == limits.max_new_tokens or self.length == longest:
            return self._end(token, text, "length")
        self._say(token, text, None)
        return None

    def cancel(self) -> Completion:
        return self._end(None, "", "cancelled")

    def _end(self, token: Token | None, text: str, finish: Finish, by: int | str | None = None) -> Completion:
        """With what still waited."""
        if self.detokenizer is not None and self.stops.found is None:
            text += self.stops.put(self.detokenizer.finish()) + self.stops.finish()
            by = self.stops.found or by  # a broken character before it had held it back
            finish = "stop" if self.stops.found is not None else finish
        self._say(token, text, finish)
        return Completion(tuple(self.tokens), finish, self.text, by)

    def _say(self, token: Token | None, text: str, finish: Finish | None) -> None:
        self.text += text
        if self.listener is not None:
            self.listener(Addition(self.request.number, self.number, token, text, finish))


class Engine:
    """Requests join and leave between any two steps. `decode` turns ids into text; stop strings need it.

    `completions` are those that ended, by (request, sample), until they are taken out.
    """

    def __init__(self, model: LanguageModel, sizes: Sizes, decode: Decode | None = None):
        self.model, self.decode = model, decode
        self.scheduler, self.cache = Scheduler(sizes), model.new_cache(sizes)
        self.completions: dict[tuple[int, int], Completion] = {}
        self._samples: dict[int, _Sample] = {}
        self._names = count()

    @property
    def busy(self) -> bool:
        return self.scheduler.busy

    def add(self, request: Request, listener: Listener | None = None) -> None:
        """Between two steps. Raises UsageError, and adds nothing, for what the model or the cache cannot do."""
        self._check(request)
        longest = min(len(request.prompt) + request.limits.max_new_tokens, self.model.longest)
        for number in range(request.n):
            detokenizer = None if self.decode is None else Detokenizer(self.decode, request.prompt)
            stops = StopStrings(request.limits.stop_strings)
            name = next(self._names)
            self.scheduler.add(name, request.prompt, longest)
            self._samples[name] = _Sample(request, number, stops, detokenizer, listener)

    def cancel(self, request: int) -> None:
        """All samples of a request that go on, between two steps."""
        for name in [name for name, sample in self._samples.items() if sample.request.number == request]:
            self._leave(name, self._samples[name].cancel())

    def step(self) -> None:
        """One forward pass, and what follows from it; nothing where the engine is not `busy`."""
        if not self.busy:
            return
        rows = self.scheduler.plan().rows
        logits = self.model.next_logits(rows, self.cache)
        drawing = [row for row in rows if row.draws]
        for row, token in zip(drawing, self._drawn(logits, drawing), strict=True):
            self.scheduler.drawn(row.sequence, token.id)
            completion = self._samples[row.sequence].put(token, self.model.longest)
            if completion is not None:
                self._leave(row.sequence, completion)

    def run(self, requests: Sequence[Request], listener: Listener | None = None) -> list[list[Completion]]:
        """The samples of each of these; other requests that are running go on beside them."""
        for request in requests:
            self.add(request, listener)
        wanted = {(request.number, sample) for request in requests for sample in range(request.n)}
        while not wanted <= self.completions.keys():
            self.step()
        return [[self.completions.pop((request.number, sample)) for sample in range(request.n)] for request in requests]

    def _leave(self, name: int, completion: Completion) -> None:
        self.scheduler.leave(name)
        sample = self._samples.pop(name)
        self.completions[sample.request.number, sample.number] = completion

    @torch.no_grad()
    def _drawn(self, logits: Tensor | None, drawing: Sequence[Row]) -> list[Token]:
        """A token for each row, on every rank. It travels in float64, in which every id is exact, with its
        log-probability and the most likely tokens, where a row wants them.
        """
        if not drawing:
            return []
        samples = [self._samples[row.sequence] for row in drawing]
        wanted = [sample.request.log_probabilities for sample in samples]
        most = max((number for number in wanted if number is not None), default=0)
        most = min(most, self.model.config.model.vocab_size)
        asked = any(number is not None for number in wanted)
        made = None
        if logits is not None:
            tokens = choose(logits, [sample.draw() for sample in samples])
            columns = [tokens[:, None]]
            if asked:
                found = log_probabilities(logits, tokens, most)
                columns += [found.chosen[:, None], found.tokens, found.others]
            made = torch.cat([column.to(torch.float64) for column in columns], 1)
        width = 2 + 2 * most if asked else 1
        table = self.model.everywhere(made, (len(drawing), width), torch.float64).tolist()
        return [_token(numbers, most, number) for numbers, number in zip(table, wanted, strict=True)]

    def _check(self, request: Request) -> None:
        check_request(request, self.model)
        if request.limits.stop_strings and self.decode is None:
            raise UsageError("stop strings need a tokenizer, to see the text")
        if any(sample.request.number == request.number for sample in self._samples.values()) or (
            (request.number, 0) in self.completions
        ):
            raise UsageError(f"request {request.number} is there already")


def _token(numbers: Sequence[float], most: int, wanted: int | None) -> Token:
    """Of a row of the table, as much as it wanted."""
    if wanted is None:
        return Token(int(numbers[0]))
    likely = zip(map(int, numbers[2 : 2 + wanted]), numbers[2 + most : 2 + most + wanted], strict=True)
    return Token(int(numbers[0]), numbers[1], tuple(likely))
