"""What Prometheus reads at /metrics."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from megatron_lite.serving.leading import Report

PREFIX = "megatron_lite_"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
WINDOW = 10.0  # seconds over which tokens a second are taken


@dataclass
class Rate:
    """Of what was counted in the last WINDOW seconds."""

    clock: Callable[[], float] = time.monotonic
    _counted: deque[tuple[float, int]] = field(default_factory=deque)
    _sum: int = 0

    def add(self, count: int) -> None:
        self._counted.append((self.clock(), count))
        self._sum += count
        self._forget()

    def value(self) -> float:
        self._forget()
        return self._sum / WINDOW

    def _forget(self) -> None:
        while self._counted and self._counted[0][0] < self.clock() - WINDOW:
            self._sum -= self._counted.popleft()[1]


class Metrics:
    """Of one server, in a registry of its own. `blocks` are those of all replicas' caches."""

    def __init__(self, blocks: int):
        self.registry = CollectorRegistry()
        self.rate = Rate()
        self.waiting = self._gauge("sequences_waiting", "Sequences that wait for a place in the batch.")
        self.running = self._gauge("sequences_running", "Sequences in the running batch.")
        self.blocks_used = self._gauge("cache_blocks_used", "Cache blocks in a sequence's table.")
        self._gauge("cache_blocks", "Cache blocks there are.").set(blocks)
        self._gauge("tokens_per_second", f"Tokens written a second, over {WINDOW:g} seconds.").set_function(
            self.rate.value
        )
        self.answers = Counter(
            f"{PREFIX}requests", "Requests, by path and status.", ("path", "status"), registry=self.registry
        )
        self.prompt_tokens = Counter(f"{PREFIX}prompt_tokens", "Tokens of accepted prompts.", registry=self.registry)
        self.tokens = Counter(f"{PREFIX}generated_tokens", "Tokens written.", registry=self.registry)
        self.first_token = Histogram(
            f"{PREFIX}time_to_first_token_seconds", "From a request's acceptance to its first token.",
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip

    def stepped(self, reports: Sequence[Report]) -> None:
        """After each step."""
        self.waiting.set(sum(report.waiting for report in reports))
        self.running.set(sum(report.running for report in reports))
        self.blocks_used.set(sum(report.blocks for report in reports))
        written = sum(addition.token is not None for report in reports for addition in report.additions)
        self.tokens.inc(written)
        self.rate.add(written)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(PREFIX + name, what, registry=self.registry)
