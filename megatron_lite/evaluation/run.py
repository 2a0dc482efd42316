"""One evaluation: rank 0 runs the harness, the others follow it."""

import json
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megatron_lite.data.chat_template import ChatTemplate
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import UsageError
from megatron_lite.evaluation.cache import Cache, Forgotten
from megatron_lite.evaluation.replicas import Replica, patient
from megatron_lite.inference.model import LanguageModel
from megatron_lite.parallel.words import Words

RESAMPLED = 1000  # times, for the standard error of a metric that has no formula for it


@dataclass(frozen=True)
class Asked:
    """What is evaluated.

    include         a folder with task files, or documents of the battery's tasks
    limit           documents of each task, the first ones; None for all
    shots           examples before each document; None for as many as a task says
    code_execution  whether code that the model writes may be executed
    chat            the text of a chat template that prompts are put into; None for plain text
    cache           a file of answers, of models that `identity` tells apart
    """

    tasks: tuple[str, ...]
    include: Path | None = None
    limit: int | None = None
    shots: int | None = None
    code_execution: bool = False
    chat: str | None = None
    cache: Path | None = None
    identity: str | None = None

    def __post_init__(self) -> None:
        if not self.tasks or "" in self.tasks:
            raise UsageError("--tasks: must name a task or more, with commas between them")
        for name, value, least in (("--limit", self.limit, 1), ("--num-fewshot", self.shots, 0)):
            if value is not None and value < least:
                raise UsageError(f"{name} {value}: must be {least} or more")
        if self.cache is not None and self.identity is None:
            raise ValueError("answers are kept of a model that has an identity")


def evaluate(model: LanguageModel, tokenizer: Tokenizer, words: Words, asked: Asked) -> dict[str, Any] | None:
    """The harness's results on rank 0, None on others; all ranks call it, with weights held. `missing` in them has a
    reason for each task of a group that could not be asked.

    The harness seeds every generator of random numbers that rank 0 has. Raises UsageError there, and LostRank on the
    others, for what cannot be asked.
    """
    replica = Replica(model, tokenizer, words)
    with patient(words):
        if model.mesh.rank != 0:
            replica.follow()
            return None
        results = _run_harness(replica, asked)
        replica.end()
        return results


def _run_harness(replica: Replica, asked: Asked) -> dict[str, Any]:
    if find_spec("lm_eval") is None:
        raise UsageError("to evaluate takes lm-eval: install megatron_lite[eval]")
    # These import the harness, which takes seconds, and is not there where nothing is evaluated.
    from lm_eval import simple_evaluate

    from megatron_lite.evaluation.adapter import Adapter, Texts
    from megatron_lite.evaluation.tasks import find_tasks

    longest = replica.model.longest
    found = find_tasks(asked.tasks, asked.include, asked.code_execution, asked.shots, longest)
    chat = None if asked.chat is None else ChatTemplate(asked.chat, replica.tokenizer)
    with _answers(asked) as answers:
        results = simple_evaluate(
            Adapter(replica, Texts(replica.tokenizer, chat), answers), tasks=list(found.tasks),
            task_manager=found.manager, num_fewshot=asked.shots, limit=asked.limit, bootstrap_iters=RESAMPLED,
            apply_chat_template=chat is not None, confirm_run_unsafe_code=asked.code_execution,
        )  # fmt: skip
    assert results is not None  # it is None on ranks that the harness takes for followers of its own
    return {**results, "missing": dict(found.missing)}


def _answers(asked: Asked) -> Any:
    if asked.cache is None or asked.identity is None:
        return nullcontext(Forgotten())
    return closing(Cache(asked.cache, asked.identity))


def as_json(results: Mapping[str, Any], checkpoint: Path) -> str:
    """What the harness writes into its own file of results, and which checkpoint's they are."""
    kept = {"checkpoint": str(checkpoint), **{name: value for name, value in results.items() if name != "samples"}}
    return json.dumps(kept, indent=2, ensure_ascii=False, default=str) + "\n"
