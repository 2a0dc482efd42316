"""Data sets of tokens: which are read, in which proportions, and what a document is."""

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from megatron_lite.config.section import NonNegativeFloat, Positive, Section
from megatron_lite.errors import UsageError

# YAML has lists only, so tuples are the one place where validation is not strict.
Blend = Annotated[tuple["BlendEntry", ...], Field(strict=False)]


def check_sets(key: str, sets: Sequence[tuple[str | None, float]]) -> None:
    """Of names and weights. Raises UsageError where nothing counts, or two have one name."""
    if sets and not any(weight for _, weight in sets):
        raise UsageError(f"{key}: every weight is 0; one must be above")
    names = [name for name, _ in sets if name is not None]
    if twice := next((one for one in names if names.count(one) > 1), None):
        raise UsageError(f"{key}: the name {twice!r} stands twice; each data set needs its own")


class FimConfig(Section):
    """Fill-in-the-middle: `rate` of a source's documents are read with their middle moved to the end, `spm_rate` of
    these with the suffix before the prefix (data/fim.py).
    """

    rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    spm_rate: Annotated[float, Field(ge=0, le=1)] = 0.5


class BlendEntry(Section):
    """One data set of a blend: `prefix`.bin and `prefix`.idx, taken in proportion to `weight`.

    `name` stands for it in metrics (null: the last part of the prefix).
    """

    prefix: str
    weight: NonNegativeFloat = 1.0
    name: str | None = None
    fim: FimConfig | None = None


class BlendChange(Section):
    """From `from_tokens` of the run on, the data sets of data.train are taken by these `weights`, one each."""

    from_tokens: Positive
    weights: Annotated[tuple[NonNegativeFloat, ...], Field(strict=False)]


class DataConfig(Section):
    """Data sets; `split` (such as "98,2") cuts those of `train` into training and validation, instead of `valid`.

    The weights of `train` hold until `schedule` changes them. Those of validation sets are their shares of valid_loss;
    each is read whole, and has its loss under its name too.

    Documents end with the tokenizer's end-of-document token. With `document_mask` a position attends to its own
    document alone; with `reset_positions` its rotary position counts from the document's first token (under the mask
    that changes rounding alone, since attention sees differences of positions; without it, it is what Megatron's
    --reset-position-ids does). The first token of the next document is predicted from the end of the one before, as is
    usual; with `eod_mask_loss` it is not counted.

    `cache_dir` keeps indices between runs (null: run_dir/cache).
    """

    train: Blend = ()
    valid: Blend = ()
    schedule: Annotated[tuple[BlendChange, ...], Field(strict=False)] = ()
    split: str | None = None
    tokenizer: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 1234
    document_mask: bool = False
    reset_positions: bool = False
    eod_mask_loss: bool = False
    order: str = "stable"
    cache_dir: str | None = None

    @model_validator(mode="after")
    def _check_blends(self) -> Self:
        for key, blend in (("train", self.train), ("valid", self.valid)):
            check_sets(f"data.{key}", [(entry.name, entry.weight) for entry in blend])
        return self

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        before = 0
        for i, change in enumerate(self.schedule):
            key = f"data.schedule[{i}]"
            if change.from_tokens <= before:
                raise UsageError(f"{key}.from_tokens = {change.from_tokens}: must be above {before}, the one before")
            if len(change.weights) != len(self.train) or not any(change.weights):
                raise UsageError(
                    f"{key}.weights = {list(change.weights)}: must be {len(self.train)}, one for each of data.train, "
                    f"not all 0"
                )
            before = change.from_tokens
        for i, entry in enumerate(self.train):
            if not entry.weight and not any(change.weights[i] for change in self.schedule):
                raise UsageError(f"data.train[{i}].weight = 0: must be above 0, here or in data.schedule")
        return self

    @model_validator(mode="after")
    def _check_megatron(self) -> Self:
        """Megatron's order knows neither a schedule nor fill-in-the-middle."""
        if self.order == "megatron":
            fim = "fim" if any(entry.fim for entry in (*self.train, *self.valid)) else None
            if key := "data.schedule" if self.schedule else fim:
                raise UsageError(f"data.order = megatron: does not go with {key}; data.order = stable does")
        return self
