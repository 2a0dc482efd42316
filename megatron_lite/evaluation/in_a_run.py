"""Benchmarks in a pretraining run: `train.evaluate` as the function that the loop calls between two steps.

What may be wrong with the question is found before the first step: a missing package, a task that nobody knows.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_lite.config import Config, EvaluateConfig
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.errors import UsageError
from megatron_lite.evaluation.run import Asked, as_json, evaluate
from megatron_lite.files import partial_path, publish
from megatron_lite.inference.model import language_model_of
from megatron_lite.launch import World
from megatron_lite.model.model import Model
from megatron_lite.parallel.pipeline.stage import held
from megatron_lite.training.benchmarks import Evaluate

log = logging.getLogger("megatron_lite")


def evaluation_of(config: Config, world: World) -> Evaluate | None:
    """What is called after some steps, on every rank; None where `train.evaluate` is null. All ranks call it together.

    Raises UsageError on rank 0, which alone needs lm-eval, where that is missing or a task cannot be asked.
    """
    if config.train.evaluate is None:
        return None
    assert config.data.tokenizer is not None  # the configuration says so
    asked, tokenizer = _asked(config.train.evaluate), open_tokenizer(config.data.tokenizer)
    if world.words.rank == 0:
        refuse_what_cannot_be_asked(asked, config.train.sequence_length)
    world.words.exchange("", "evaluation")
    run_dir = Path(config.train.run_dir).resolve()

    def run(model: Model, step: int) -> Mapping[str, float]:
        with held(model.stage):
            results = evaluate(language_model_of(model), tokenizer, world.words, asked)
        if results is None:
            return {}
        write_results(run_dir, step, results)
        return numbers_of(results)

    return run


def refuse_what_cannot_be_asked(asked: Asked, longest: int) -> None:
    """Raises UsageError without lm-eval, and for tasks that are unknown, whose documents are not here, or whose answers
    are too long for a model of `longest` tokens. What a group lacks is left out, and a line says so.
    """
    try:
        from megatron_lite.evaluation.tasks import find_tasks
    except ImportError as error:
        raise UsageError(
            f"train.evaluate: takes lm-eval, and {error.name} is missing: pip install 'megatron_lite[eval]'"
        ) from None
    try:
        found = find_tasks(asked.tasks, asked.include, longest=longest)
    except UsageError as error:
        raise UsageError(f"train.evaluate: {error}") from None
    for name, reason in found.missing.items():
        log.info("train.evaluate leaves out %s: %s", name, reason)


def numbers_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Of lm-eval's results, TASK/METRIC with a filter's name behind a comma where one other than `none` was applied. A
    group stands for its tasks.
    """
    inside = {task for tasks in results.get("group_subtasks", {}).values() for task in tasks}
    return {
        f"{task}/{key.removesuffix(',none')}": float(value)
        for task, metrics in results["results"].items()
        if task not in inside
        for key, value in metrics.items()
        if "," in key and isinstance(value, int | float) and math.isfinite(value)
    }


def write_results(run_dir: Path, step: int, results: Mapping[str, Any]) -> None:
    """lm-eval's JSON without each document's answers, whole or not at all."""
    path = run_dir / "evaluation" / f"step_{step}.json"
    path.parent.mkdir(exist_ok=True)
    checkpoint = run_dir / "checkpoints" / path.stem  # of these weights, where the run saves them
    partial_path(path).write_text(as_json(results, checkpoint), encoding="utf-8")
    publish(path)


def _asked(config: EvaluateConfig) -> Asked:
    include = None if config.include_path is None else Path(config.include_path)
    return Asked(config.tasks, include, config.limit)
