"""The ledger: what a transcript adds up to."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from megatron_lite.parallel.collectives import Event


@dataclass
class Entry:
    """Everything sent from one call site by one operation."""

    calls: int = 0
    bytes: int = 0


def ledger(events: Iterable[Event]) -> dict[tuple[str, str], Entry]:
    """(site, operation) -> its calls and payload bytes, in the order of first appearance."""
    entries: dict[tuple[str, str], Entry] = defaultdict(Entry)
    for event in events:
        if event.kind == "issue":
            entry = entries[event.site, event.operation]
            entry.calls += 1
            entry.bytes += event.bytes
    return dict(entries)
