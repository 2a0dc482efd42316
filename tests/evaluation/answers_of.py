"""`python answers_of.py ours|theirs MODEL INCLUDE LIMIT DTYPE OUTPUT TASKS [key=value ..]`: what a model answered.

JSON: {task: {"metrics": {name: value}, "documents": [{"requests": [..], "answers": [..]}]}}, written by rank 0. Theirs
is the harness's own `hf` model at batch size 1.
"""

import json
import sys
from pathlib import Path
from typing import Any

from megatron_lite.errors import run_command
from megatron_lite.evaluation.run import Asked, evaluate
from megatron_lite.inference.opening import Asked as AskedModel
from megatron_lite.inference.opening import opened_model


def ours(model: str, layout: list[str], dtype: str, asked: Asked) -> dict[str, Any] | None:
    with opened_model(AskedModel(model, tuple(layout), dtype)) as opened:
        return evaluate(opened.model, opened.tokenizer, opened.words, asked)


def theirs(model: str, layout: list[str], dtype: str, asked: Asked) -> dict[str, Any] | None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from megatron_lite.evaluation.tasks import find_tasks

    assert not layout
    found = find_tasks(asked.tasks, asked.include)
    theirs = HFLM(pretrained=model, dtype=dtype, device="cpu", batch_size=1)
    return simple_evaluate(theirs, tasks=list(found.tasks), task_manager=found.manager, limit=asked.limit)


def main() -> None:
    side, model, include, limit, dtype, output, tasks, *layout = sys.argv[1:]
    asked = Asked(tuple(tasks.split(",")), Path(include), int(limit))
    results = {"ours": ours, "theirs": theirs}[side](model, layout, dtype, asked)
    if results is None:
        return
    found = {
        task: {
            "metrics": {name: value for name, value in results["results"][task].items() if isinstance(value, float)},
            "documents": [
                {"requests": [list(one.values()) for one in sample["arguments"].values()]
                 if isinstance(sample["arguments"], dict) else sample["arguments"], "answers": sample["resps"]}
                for sample in sorted(samples, key=lambda sample: sample["doc_id"])
            ],
        }
        for task, samples in results["samples"].items()
    }  # fmt: skip
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    run_command(main)
