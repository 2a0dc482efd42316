"""The ledger: what a transcript adds up to."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from megatron_lite.parallel.collectives import Event

ONCE_A_STEP = ("count", "finish")
ONCE_A_RUN = ("connect",)


@dataclass
class Entry:
    """Everything sent from one call site by one operation."""

    calls: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.calls += 1
        self.bytes += size


def ledger(events: Iterable[Event]) -> dict[tuple[str, str], Entry]:
    """(site, operation) -> its calls and payload bytes in steps, in the order of first appearance."""
    return _ledger(event for event in events if event.phase not in ONCE_A_RUN)


def connect_ledger(events: Iterable[Event]) -> dict[tuple[str, str], Entry]:
    """The same of what goes before the first step."""
    return _ledger(event for event in events if event.phase in ONCE_A_RUN)


def _ledger(events: Iterable[Event]) -> dict[tuple[str, str], Entry]:
    entries: dict[tuple[str, str], Entry] = defaultdict(Entry)
    for event in events:
        if event.kind == "issue":
            entries[event.site, event.operation].add(event.bytes)
    return dict(entries)


def phase_totals(events: Iterable[Event]) -> dict[tuple[str, str], Entry]:
    """(phase, axis) -> its calls and payload bytes in steps. A phase is a kind of action, F, B, I or W, whatever its
    microbatch, or what happens once a step: count, finish."""
    totals: dict[tuple[str, str], Entry] = defaultdict(Entry)
    for event in events:
        if event.kind == "issue" and event.phase not in ONCE_A_RUN:
            phase = event.phase if event.phase in ONCE_A_STEP else event.phase[:1]
            totals[phase, event.axis].add(event.bytes)
    return dict(totals)
