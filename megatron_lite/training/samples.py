"""Sample texts between two steps of a run: the model in training answers the same prompts again and again.

prompt -> ids, as the run's course says -> answers, by a function that is handed down -> a line each of samples.jsonl
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_lite.config import Config
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import UsageError
from megatron_lite.model.model import Model
from megatron_lite.training.metrics import read_metrics, rewind
from megatron_lite.training.undisturbed import undisturbed

SAMPLES = "samples.jsonl"  # in the run directory

Ids = Sequence[int]
Encode = Callable[[str], Ids]  # a prompt of the configuration -> what the model is given


Answer = tuple[str, str]  # text, and why it ended
# (the model in training, its tokenizer, the ids of each prompt) -> an answer to each, as `train.samples` says. Every
# rank calls it; the first one's are written. It may hold the weights while it runs, and changes none.
Write = Callable[[Model, Tokenizer, Sequence[Ids]], Sequence[Answer]]


@dataclass(frozen=True)
class Samples:
    """What is asked, and where it is written. Build one with `samples_of`."""

    prompts: tuple[str, ...]
    ids: tuple[Ids, ...]
    tokenizer: Tokenizer
    path: Path

    def ask(self, model: Model, step: int, write: Write) -> Sequence[Answer]:
        """Of every rank. Raises RuntimeError where `write` leaves weights held."""
        with undisturbed(model, step, "samples"):
            return write(model, self.tokenizer, self.ids)

    def add(self, step: int, answers: Sequence[Answer]) -> None:
        """In place of those of this step and later ones that may be there."""
        rewind(self.path, step - 1)
        lines = [
            {"step": step, "prompt": prompt, "text": text, "finish_reason": reason}
            for prompt, (text, reason) in zip(self.prompts, answers, strict=True)
        ]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def has(self, step: int) -> bool:
        """Whether every prompt was answered after this step."""
        return {one["prompt"] for one in read_metrics(self.path) if one["step"] == step} >= set(self.prompts)


def samples_of(config: Config, tokenizer: Tokenizer | None, encode: Encode | None) -> Samples | None:
    """None where `train.samples` is null. Without `encode` prompts are texts that the model goes on with.

    Raises UsageError for a prompt that leaves no room for an answer, before anything runs.
    """
    asked, longest = config.train.samples, config.train.sequence_length
    if asked is None:
        return None
    if tokenizer is None:
        raise UsageError("train.samples: takes the run's tokenizer; set data.tokenizer")
    ids = tuple(tuple((encode or tokenizer.encode_prompt)(prompt)) for prompt in asked.prompts)
    for number, one in enumerate(ids):
        if not 0 < len(one) < longest:
            raise UsageError(
                f"train.samples.prompts[{number}] has {len(one)} tokens: must have 1 to {longest - 1}, fewer than "
                f"train.sequence_length = {longest}"
            )
    return Samples(asked.prompts, ids, tokenizer, Path(config.train.run_dir) / SAMPLES)
