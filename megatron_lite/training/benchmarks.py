"""Benchmarks between two steps of a run, by a function that is handed down: training knows nothing of what it asks."""

from collections.abc import Callable, Mapping

from megatron_lite.model.model import Model
from megatron_lite.training.undisturbed import undisturbed

# (the model in training, the step just done) -> numbers by name, TASK/METRIC. Every rank calls it; the first one's
# numbers are written. It may hold the weights while it runs, and changes none.
Evaluate = Callable[[Model, int], Mapping[str, float]]

PREFIX = "evaluation/"  # of the numbers' names in metrics.jsonl


def numbers_after(step: int, model: Model, evaluate: Evaluate) -> dict[str, float]:
    """What `evaluate` finds, by names in metrics.jsonl. Raises RuntimeError where it leaves weights held."""
    with undisturbed(model, step, "evaluation"):
        found = evaluate(model, step)
    return {PREFIX + name: value for name, value in found.items()}


def shown(numbers: Mapping[str, float]) -> str:
    """In a line, without standard errors."""
    some = {name.removeprefix(PREFIX): value for name, value in numbers.items() if "_stderr" not in name}
    return ", ".join(f"{name} {value:.4g}" for name, value in some.items()) or "no numbers"
