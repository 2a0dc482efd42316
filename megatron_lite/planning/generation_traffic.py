"""Closed forms of what one rank sends while it generates, call by call: the bytes that its ledger must show.

T new tokens of all rows go through the model, after D of which a token is drawn; every tensor rank has all activations:

    axis      site                                          operation             payload
    tensor    embedding.leave; each block's attention.leave  all_reduce            [T, H]
              and mlp.leave
              with adapters there their leave.narrow         all_reduce            [T, r]
              decode.logits                                  all_gather            [D, V], V with its padding
    pipeline  decode.activation, between virtual stages      send, recv            [T, H]
              decode.result, back through the last chunk     send, recv            [D, 1 + 1 + 2 most likely], float64
    zero      zero.gather, once, where `held` begins         all_gather            each shards' weights
              generate.sizes, generate.answers, at the end   all_gather            a size, bytes of text

A payload is the larger side of an operation (parallel/collectives.py). A block without sequence parallelism takes two
all-reduces forward: Shoeybi et al. 2019, arXiv 1909.08053, section 3. Data and context ranks, which are replicas, send
each other nothing between.
"""

from collections import Counter
from dataclasses import dataclass

from megatron_lite.parallel.pipeline.routes import received_on, sent_on
from megatron_lite.parallel.pipeline.schedules import Action, Kind
from megatron_lite.parallel.statistics import DISTRIBUTION
from megatron_lite.planning.sizes import StageSizes

Key = tuple[str, str, str]  # (axis, site, operation); a pipeline's axis is its channel's name
Traffic = dict[Key, tuple[int, int]]  # -> (calls, bytes)

DRAWN = 8  # bytes of a number of decode.result: float64 holds every token id exactly


@dataclass(frozen=True)
class StepSizes:
    """Of a step of generation: new `tokens` of all its rows, rows that draw, and how many of the most likely tokens the
    row that wants most of them is given (None: no row that draws wants log-probabilities).
    """

    tokens: int
    draws: int
    most_likely: int | None = None


class GenerationTraffic(StageSizes):
    """The traffic of a rank on one stage; every rank of a stage has the same. Of the schedule the placement counts."""

    def step(self, sizes: StepSizes) -> Traffic:
        """Of a forward pass and what is drawn after it."""
        calls = self._pass(sizes.tokens)
        if not sizes.draws:
            return calls.found()
        if self._ends and self.resolved.tensor > 1:
            logits = sizes.draws * self.resolved.padded_vocab_size * self.element_bytes
            calls.add(("tensor", "decode.logits", "all_gather"), 1, logits)
        self._result(calls, sizes.draws * self._numbers(sizes.most_likely) * DRAWN)
        return calls.found()

    def score(self, tokens: int) -> Traffic:
        """Of a pass in which every token's label is scored."""
        calls, count = self._pass(tokens), DISTRIBUTION.count
        if self._ends and self.resolved.tensor > 1:
            ranks = self.resolved.tensor * count * self.exact_bytes  # of one token
            chunk = min(self.config.kernels.loss_chunk or tokens, tokens)
            site = "cross_entropy.chunk" if self.chunked else "cross_entropy.combine"
            whole, rest = divmod(tokens, chunk)
            calls.add(("tensor", site, "all_gather"), whole, chunk * ranks)
            calls.add(("tensor", site, "all_gather"), int(rest > 0), rest * ranks)
        self._result(calls, count * tokens * self.exact_bytes)
        return calls.found()

    def gather(self) -> Traffic:
        """Of the weights, once, before the first step."""
        calls = _Calls()
        axis = "zero" if self.sharding == self.resolved.zero_size else "zero.sharding"
        for shards in self.shards if self.sharding > 1 else ():
            calls.add((axis, "zero.gather", "all_gather"), 1, self.gathered_size(shards) * self.element_bytes)
        return calls.found()

    def answers(self, longest: int) -> Traffic:
        """Of bringing all replicas' answers together; the longest takes so many bytes."""
        calls, replicas = _Calls(), self.resolved.zero_size
        if replicas > 1:
            calls.add(("zero", "generate.sizes", "all_gather"), 1, 8 * replicas)
            calls.add(("zero", "generate.answers", "all_gather"), 1, longest * replicas)
        return calls.found()

    @property
    def _ends(self) -> bool:
        """Whether the model ends on this stage."""
        return any(unit.ends for unit in self.units)

    def _pass(self, tokens: int) -> "_Calls":
        """Of activations, up to what the head takes."""
        calls, size = _Calls(), tokens * self.config.model.hidden_size * self.element_bytes
        for unit in self.units if self.resolved.tensor > 1 else ():
            for site in {"embedding": ("embedding",), "block": ("attention", "mlp")}.get(unit.kind, ()):
                calls.add(("tensor", f"{site}.leave", "all_reduce"), 1, size)
                narrow = self.narrow("down" if site == "mlp" else "o") if unit.kind == "block" else 0
                if narrow:
                    narrow_size = tokens * narrow * self.element_bytes
                    calls.add(("tensor", f"{site}.leave.narrow", "all_reduce"), 1, narrow_size)
        for chunk in range(self.schedule.placement.chunks):
            self._message(calls, "F", chunk, "decode.activation", size)
        return calls

    def _result(self, calls: "_Calls", size: int) -> None:
        """From where the model ends to every stage: each has one virtual stage of the last chunk."""
        placement = self.schedule.placement
        chunk = placement.chunks - 1
        before = placement.before(self.stage, chunk)
        self._message(calls, "B", chunk, "decode.result", size, goes_on=before is not None and before[1] == chunk)

    def _message(self, calls: "_Calls", kind: Kind, chunk: int, site: str, size: int, goes_on: bool = True) -> None:
        place = (Action(kind, 0, chunk), self.schedule.placement, self.stage)
        if (source := received_on(*place)) is not None:
            calls.add((source.name, site, "recv"), 1, size)
        if goes_on and (target := sent_on(*place)) is not None:
            calls.add((target.name, site, "send"), 1, size)

    def _numbers(self, most_likely: int | None) -> int:
        """Of each draw: its token; where log-probabilities are asked its own, and ids and theirs of the most likely."""
        return 1 if most_likely is None else 2 + 2 * min(most_likely, self.config.model.vocab_size)


class _Calls:
    """Calls and bytes, added up."""

    def __init__(self) -> None:
        self.calls: Counter[Key] = Counter()
        self.bytes: Counter[Key] = Counter()

    def add(self, key: Key, calls: int, size: int) -> None:
        self.calls[key] += calls
        self.bytes[key] += calls * size

    def found(self) -> Traffic:
        return {key: (self.calls[key], self.bytes[key]) for key in self.calls if self.calls[key]}
