"""Validation between steps: each set's numbers over all of it, or over its first batches, and their means over sets."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from megatron_lite.training.feed import ValidationFeed
from megatron_lite.training.step import Trainer
from megatron_lite.training.text_bytes import bits_per_byte

Numbers = Mapping[str, float]
TextBytes = Callable[[str, int], int]  # (set, global batches) -> bytes that the counted labels stand for


@dataclass(frozen=True)
class Validated:
    """By set: the objective's numbers over it, `loss` among them, and bits per byte of the text, of those sets whose
    bytes are known.
    """

    numbers: Mapping[str, Numbers]
    bits_per_byte: Numbers


@dataclass(frozen=True)
class Validation:
    """`text` counts bytes where they are wanted and known (None: elsewhere). `divisors` says which of the objective's
    denominators a number was divided by, where that is not the first.
    """

    feeds: Sequence[ValidationFeed]
    trainer: Trainer
    text: TextBytes | None = None
    divisors: Mapping[str, int] = field(default_factory=dict)

    def after(self, step: int) -> Validated | None:
        """None where no validation is due after `step`.

        After the last step the whole of each set is read, else at most `valid_batches` global batches.
        """
        train = self.trainer.config.train
        last = step == train.steps
        if not self.feeds or not (last or (train.valid_every and step % train.valid_every == 0)):
            return None
        numbers, bits = {}, {}
        for one in self.feeds:
            most = None if last else train.valid_batches
            batches = one.batches() if most is None else min(one.batches(), most)
            sums, counts = self._sums(one, batches)
            numbers[one.name] = {name: value / counts[name] for name, value in sums.items()}
            if self.text is not None and (size := self.text(one.name, batches)):
                bits[one.name] = bits_per_byte(sums["loss"], size)
        return Validated(numbers, bits)

    def mean(self, values: Numbers) -> float:
        """The mean of the sets' numbers by their weights."""
        total = sum(one.weight for one in self.feeds)
        return sum(one.weight * values[one.name] for one in self.feeds) / total

    def mean_loss(self, found: Validated) -> float:
        return self.mean({name: numbers["loss"] for name, numbers in found.numbers.items()})

    def named(self, found: Validated) -> dict[str, float]:
        """All but the mean loss, by names in metrics.jsonl. Bits per byte have a mean where every set has them."""
        kinds = list(next(iter(found.numbers.values())))
        named: dict[str, float] = {}
        for kind in kinds:
            of_sets = {name: numbers[kind] for name, numbers in found.numbers.items()}
            named |= {} if kind == "loss" else {f"valid_{kind}": self.mean(of_sets)}
            named |= {f"valid_{kind}/{name}": value for name, value in of_sets.items()}
        if found.bits_per_byte.keys() == found.numbers.keys():
            named["valid_bits_per_byte"] = self.mean(found.bits_per_byte)
        return named | {f"valid_bits_per_byte/{name}": bits for name, bits in found.bits_per_byte.items()}

    def _sums(self, one: ValidationFeed, batches: int) -> tuple[dict[str, float], dict[str, float]]:
        """(sums, what they are of) of the objective's numbers over so many global batches."""
        reported = [name for name in self.trainer.objective.sums if name != "z_loss"]
        sums, counts = defaultdict[str, float](float), defaultdict[str, float](float)
        for number in range(batches):
            result = self.trainer.evaluate(one.microbatches(number))
            for name in reported:
                count = result.denominators[self.divisors.get(name, 0)].item()
                sums[name] += result.numbers[name].item() * count
                counts[name] += count
        return sums, counts
