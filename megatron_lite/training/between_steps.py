"""What looks at the model between two steps, benchmarks and sample texts: when it is due, and when it is owed."""

import logging
import time
from dataclasses import dataclass

from megatron_lite.model.model import Model
from megatron_lite.training.benchmarks import PREFIX, Evaluate, numbers_after, shown
from megatron_lite.training.metrics import MetricsWriter
from megatron_lite.training.samples import Samples, Write

log = logging.getLogger("megatron_lite")


@dataclass(frozen=True)
class Meanwhile:
    """The functions that a command hands down: called as `train.evaluate` and `train.samples` say, if they say so."""

    evaluate: Evaluate | None = None
    write: Write | None = None


@dataclass(frozen=True)
class BetweenSteps:
    """Of one run on one rank; `writer` is there on the first alone, `samples` where some are asked for."""

    model: Model
    meanwhile: Meanwhile
    samples: Samples | None
    writer: MetricsWriter | None

    def after(self, step: int) -> None:
        """All that is due after a step that was just done."""
        if self._samples_are_due(step):
            self._write_samples(step)
        if self._benchmarks_are_due(step):
            self._evaluate(step)

    def make_up(self, step: int) -> None:
        """What a run that is resumed after `step` had ended before; rank 0 knows, and tells."""
        if step and self._samples_are_due(step) and self._all_hear(self._owes_samples(step), "samples"):
            self._write_samples(step)
        if step and self._benchmarks_are_due(step) and self._all_hear(self._owes_benchmarks(step), "evaluation"):
            self._evaluate(step)

    def _write_samples(self, step: int) -> None:
        assert self.samples is not None and self.meanwhile.write is not None  # they are due
        begin = time.perf_counter()
        answers = self.samples.ask(self.model, step, self.meanwhile.write)
        if self.writer is not None:
            self.samples.add(step, answers)
            log.info("wrote %d samples after step %d in %.1f s", len(answers), step, time.perf_counter() - begin)

    def _evaluate(self, step: int) -> None:
        assert self.meanwhile.evaluate is not None  # it is due
        begin = time.perf_counter()
        numbers = numbers_after(step, self.model, self.meanwhile.evaluate)
        if self.writer is not None:
            self.writer.add(step, numbers)
            log.info("evaluated after step %d in %.1f s: %s", step, time.perf_counter() - begin, shown(numbers))

    def _samples_are_due(self, step: int) -> bool:
        train = self.model.config.train
        asked = None if self.samples is None or self.meanwhile.write is None else train.samples
        return asked is not None and asked.is_due(step, train.steps)

    def _benchmarks_are_due(self, step: int) -> bool:
        train = self.model.config.train
        asked = None if self.meanwhile.evaluate is None else train.evaluate
        return asked is not None and asked.is_due(step, train.steps)

    def _owes_samples(self, step: int) -> bool:
        return self.writer is not None and self.samples is not None and not self.samples.has(step)

    def _owes_benchmarks(self, step: int) -> bool:
        line = {} if self.writer is None else self.writer.last()
        return line.get("step") == step and not any(name.startswith(PREFIX) for name in line)

    def _all_hear(self, owes: bool, site: str) -> bool:
        """Whether rank 0 owes."""
        return self.model.mesh.words.exchange("owed" if owes else "", site)[0] == "owed"
