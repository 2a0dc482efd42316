"""Whether two models are one function: their logits on the same tokens, in float32.

Loss and text prove nothing here: a wrong base of the rotary angles, 10,000 for 100,000, moved a small model's loss from
2.78 to 2.91 nats and its logits by 25.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_lite.errors import DataError, UsageError

BOUND = 1e-3  # of logits
LENGTH = 512  # tokens at a time
Logits = Callable[[Tensor], Tensor]  # int64 [T] -> [T, V]


@dataclass(frozen=True)
class Agreement:
    tokens: int
    largest: float  # difference between two logits
    equal: int  # tokens of which the most likely next one is the same

    def __str__(self) -> str:
        return f"{self.tokens} tokens, logits differ by {self.largest:.1e} at most, argmax equal at {self.equal}"


def compare(ours: Logits, theirs: Logits, batches: Iterable[Tensor], bound: float = BOUND) -> Agreement:
    """Raises DataError where a logit differs by more than `bound`, is no number, or is of another vocabulary."""
    tokens = equal = 0
    largest = 0.0
    for batch in batches:
        a, b = ours(batch), theirs(batch)
        if a.shape != b.shape:
            raise DataError(f"the converted model gives logits {list(a.shape)}, the original {list(b.shape)}")
        difference = (a - b).abs().max().item()
        # Written so that a difference that is no number is refused.
        if not difference <= bound:
            raise DataError(
                f"the converted model is another function: a logit differs by {difference:.3g} within {len(batch)} "
                f"tokens, {bound:g} is the most; nothing was kept"
            )
        largest = max(largest, difference)
        tokens += len(batch)
        equal += int((a.argmax(-1) == b.argmax(-1)).sum())
    return Agreement(tokens, largest, equal)


def in_batches(ids: list[int], context: int) -> Iterator[Tensor]:
    """The ids in order, a bounded number at a time, each batch from position 0 on."""
    length = min(LENGTH, context)
    for begin in range(0, len(ids), length):
        yield torch.tensor(ids[begin : begin + length])


class Transformers:
    """transformers' model of a Hugging Face directory or a GGUF file, in float32, and its tokenizer."""

    def __init__(self, path: Path, rounded: torch.dtype | None = None, adapter: Path | None = None):
        """With weights that are `rounded` to a dtype first, and with an `adapter` as PEFT adds it. Raises UsageError
        where transformers, or what it needs for such a file, is not installed.
        """
        self.path, self._library = path, library()
        self._where, self._options = str(path), {}
        if path.is_file():
            self._where, self._options = str(path.parent), {"gguf_file": path.name}
        model = self._library.AutoModelForCausalLM
        try:
            self._model = model.from_pretrained(self._where, dtype=torch.float32, **self._options).eval()
        except (ImportError, ValueError) as error:
            raise UsageError(f"--verify: transformers cannot open {path}: {str(error).splitlines()[0]}") from None
        for parameter in self._model.parameters() if rounded is not None else ():
            parameter.data = parameter.data.to(rounded).float()
        if adapter is not None:
            self._model = peft().PeftModel.from_pretrained(self._model, str(adapter)).float().eval()

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Tensor:
        return self._model(batch[None], use_cache=False).logits[0]

    def encode(self, text: str, vocab_size: int) -> tuple[list[int], str]:
        """The ids of a text, and what made them: the tokenizer there, or the text's bytes where there is none."""
        if self.path.is_dir() and not any(
            (self.path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")
        ):
            return [byte % vocab_size for byte in text.encode()], "its bytes as ids, since there is no tokenizer"
        tokenizer = self._library.AutoTokenizer.from_pretrained(self._where, **self._options)
        return tokenizer(text)["input_ids"], "its tokenizer's ids"


def library() -> Any:
    """transformers, which nothing else here needs."""
    try:
        import transformers
    except ImportError:
        raise UsageError(
            "--verify compares with transformers, which is not installed: pip install 'megatron_lite[verify]'"
        ) from None
    return transformers


def peft() -> Any:
    """What an adapter for itself is compared with."""
    try:
        import peft
    except ImportError:
        raise UsageError(
            "--verify compares an adapter with PEFT, which is not installed: pip install 'megatron_lite[verify]'"
        ) from None
    return peft
