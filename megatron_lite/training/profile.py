"""A trace of some steps of one rank, in Chrome's format, by torch.profiler; docs/profiling.md reads one.

Beside PyTorch's operations it shows what `label` names: each step, each unit's turn, each collective and the wait for
it (parallel/labels.py).
"""

import gzip
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from megatron_lite.config import ProfileConfig
from megatron_lite.parallel.labels import label

log = logging.getLogger("megatron_lite")


class Trace:
    """The steps that `train.profile` names, after the `done` ones, in run_dir/profile/step_N/rank_R.json.gz, N the
    first of them. Of another rank, and without a profile, it does nothing.

    As a context: what was traced is written when the steps are through or the run is stopped among them; not after an
    error.
    """

    def __init__(self, profile: ProfileConfig | None, run_dir: Path, rank: int, done: int):
        self.steps = range(0)
        self.running: torch.profiler.profile | None = None
        if profile is None or rank not in (profile.ranks or (0,)):
            return
        self.steps = range(max(profile.start, done + 1), profile.last + 1)
        if self.steps:
            self.path = run_dir / "profile" / f"step_{self.steps[0]}" / f"rank_{rank}.json.gz"
        else:
            log.info(
                "nothing to trace: train.profile ends with step %d, the run goes on after step %d", profile.last, done
            )

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.running is not None and kind is None:
            self._write(self.running)

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around a whole step, with what belongs to it: data, validation, a checkpoint."""
        if number not in self.steps:
            yield
            return
        running = self.running
        if running is None:
            running = self.running = torch.profiler.profile()
            running.start()
        with label("step", number):
            yield
        if number == self.steps[-1]:
            self._write(running)

    def _write(self, running: torch.profiler.profile) -> None:
        running.stop()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        plain = self.path.with_suffix("")
        running.export_chrome_trace(str(plain))
        self.running = None
        # Not by export_chrome_trace, which packs line by line and takes ten times as long.
        packed = self.path.with_suffix(".unfinished")
        with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=6) as target:
            shutil.copyfileobj(source, target, 2**20)
        packed.replace(self.path)
        plain.unlink()
        log.info("trace: %s", self.path)
