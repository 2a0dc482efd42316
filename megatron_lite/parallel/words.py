"""Short texts between all ranks, through the store in which they met: files that are ready, errors, the end.

Not through the devices' process groups: while one rank writes files for minutes, the others would stand in a collective
that their watchdog ends. Rank 0 collects what every rank said and publishes it under one key, so that an exchange costs
each rank two requests to the store, and no rank a connection to every other.
"""

import json
import time
from dataclasses import dataclass

import torch.distributed as dist

from megatron_lite.errors import MegatronLiteError

# Seconds. Merging the index of a large checkpoint and removing an old one take minutes on a slow file system.
PATIENCE = 3600.0
GOODBYE = 10.0  # seconds that rank 0 stays for the others to have heard


class LostRank(MegatronLiteError):
    """A rank that failed, or did not answer; the message says which and where."""


@dataclass
class Words:
    """What this rank says to all and hears from all, in exchanges that every rank takes part in.

    store     None where there is nobody else
    exchanges so far
    """

    store: dist.Store | None
    rank: int
    size: int
    patience: float = PATIENCE
    exchanges: int = 0

    @classmethod
    def over(cls, store: dist.Store, rank: int, size: int) -> "Words":
        """Of the ranks that met in a store, whose every rank calls this equally often."""
        number = store.add(f"words/{rank}", 1)
        return cls(dist.PrefixStore(f"words/{number}", store), rank, size)

    @classmethod
    def alone(cls) -> "Words":
        """Of a process that shares with nobody."""
        return cls(None, 0, 1)

    def exchange(self, text: str, site: str) -> list[str]:
        """Every rank's text, in rank order; also a barrier. Raises LostRank when one failed or stays away."""
        if self.store is None or self.size == 1:
            return [text]
        self.exchanges += 1
        said, heard = f"{self.exchanges}/said", f"{self.exchanges}/heard"
        if self.rank == 0:
            others = [f"{said}/{rank}" for rank in range(1, self.size)]
            self._wait_for(self.store, others, site)
            texts = [text, *(value.decode() for value in self.store.multi_get(others))]
            self.store.set(heard, json.dumps(texts))
            for key in (*others, f"{self.exchanges - 1}/heard"):  # all read the last one: they spoke in this
                self.store.delete_key(key)
            return texts
        self.store.set(f"{said}/{self.rank}", text)
        self._wait_for(self.store, [heard], site)
        return json.loads(self.store.get(heard))

    def fail(self, reason: str) -> None:
        """Tell every rank that waits, now or later, that this one is gone."""
        if self.store is not None and self.size > 1:
            self.store.set("failed", f"rank {self.rank}: {reason}")

    def failure(self) -> str | None:
        """Which rank has said that it is gone, and why; None where none has."""
        if self.store is None or not self.store.check(["failed"]):
            return None
        return self.store.get("failed").decode()

    def part(self, site: str) -> None:
        """A barrier that rank 0 is the last to leave: its process may hold the store, and may end next."""
        self.exchange("", site)
        if self.store is None or self.size == 1:
            return
        self._stay_until_heard(self.store, f"{self.exchanges}/heard by", self.size)

    def _wait_for(self, store: dist.Store, keys: list[str], site: str) -> None:
        begin = time.monotonic()
        while not store.check(keys):
            waited = time.monotonic() - begin
            if store.check(["failed"]):
                reason = store.get("failed").decode()
                self._stay_until_heard(store, "failed/heard by", self.size - 1)  # all but the one that failed
                raise LostRank(f"{site}: {reason}")
            if waited > self.patience:
                missing = [key for key in keys if not store.check([key])]
                who = [int(key.rsplit("/", 1)[1]) for key in missing] if self.rank == 0 else [0]
                raise LostRank(f"{site}: no word from ranks {who} for {self.patience:g} s")
            _pause(waited)

    def _stay_until_heard(self, store: dist.Store, key: str, count: int) -> None:
        """Say that this rank has heard; rank 0 stays until so many have, for a while."""
        heard = store.add(key, 1)
        begin = time.monotonic()
        while self.rank == 0 and heard < count and (waited := time.monotonic() - begin) < GOODBYE:
            _pause(waited)
            heard = store.add(key, 0)


def _pause(waited: float) -> None:
    """Until the next look: a tenth of the wait so far, so that looking is seldom and costs a tenth at most."""
    time.sleep(min(max(waited / 10, 0.001), 1.0))
