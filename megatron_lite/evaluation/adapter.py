"""What lm-evaluation-harness asks of a model, as its own `hf` model answers it: the same tokens, windows and cuts.

    a request -> tokens -> is its answer kept? -> batches to all replicas -> answers kept -> the harness's form

Imports lm-eval, so only rank 0 of an evaluation imports this module, and late.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from megatron_lite.data.chat_template import MARKS, ChatTemplate
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import UsageError
from megatron_lite.evaluation.cache import Answers
from megatron_lite.evaluation.replicas import Item, Kind, Prompt, Replica, prompt_item, question_item
from megatron_lite.evaluation.tasks import NEW
from megatron_lite.inference.shared_beginnings import Question
from megatron_lite.progress import Progress

MARK = MARKS[0]  # keeps apart what is a control token's name in a message; no data set has this noncharacter
BATCH = {"score": 16_384, "write": 4_096}  # tokens that each replica gets at once: what a killed evaluation loses
# Of a task's generation_kwargs; `do_sample` says whether all but the last count.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Texts:
    """How text becomes tokens: with a chat template, names of control tokens in the text that it makes are these."""

    tokenizer: Tokenizer
    chat: ChatTemplate | None = None

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text) if self.chat is None else self.tokenizer.encode_marked(text, but=MARK)

    @property
    def prefix(self) -> int:
        """What stands before a text that nothing stands before."""
        first = self.tokenizer.named_tokens.get("bos_token")
        return self.tokenizer.special_tokens.get(first or "", self.tokenizer.eod_id)

    @property
    def prefix_name(self) -> str | None:
        names = {token: name for name, token in self.tokenizer.special_tokens.items()}
        return names.get(self.prefix)


class Adapter(TemplateLM):
    """A model on all ranks, to the harness. `answers` are asked first, and keep what is computed."""

    def __init__(self, replica: Replica, texts: Texts, answers: Answers):
        super().__init__()
        self.replica, self.texts, self.answers = replica, texts, answers

    @property
    def max_length(self) -> int:
        return self.replica.model.longest

    @property
    def eot_token_id(self) -> int:
        return self.texts.tokenizer.eod_id

    @property
    def prefix_token_id(self) -> int:
        return self.texts.prefix

    @property
    def tokenizer_name(self) -> str:
        return f"sha256-{self.texts.tokenizer.sha256[:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """With what the model saw before each text in training, unless that stands there, or is not wanted."""
        begins = has_bos_prefix(string, self.texts.prefix_name)
        wanted = not begins if add_special_tokens is None else add_special_tokens
        return [*(self.texts.tokenizer.beginning if wanted else ()), *self.texts.encode(string)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return None if self.texts.chat is None or not chat_template else self.texts.chat.source

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation's text; one that the assistant has begun ends where that ends."""
        assert self.texts.chat is not None  # the harness was not told of one
        text = self.texts.chat.marked(MARK, chat_history, add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)] if last in text else text

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        questions = [self._question(context, continuation) for _, context, continuation in requests]
        found = self._ask("score", [question_item(question) for question in questions])
        return [(total, greedy) for total, greedy in found]

    def _question(self, context: Sequence[int], continuation: Sequence[int]) -> Question:
        """Too long a context is cut from its beginning."""
        count = len(continuation)
        if not 0 < count <= self.max_length:
            raise UsageError(
                f"a task's choice has {count} tokens: must have 1 to {self.max_length}, as many as the model reads"
            )
        whole = (*context, *continuation)[-(self.max_length + 1) :]
        return Question(tuple(whole[:-count]), tuple(whole[-count:]))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Each token once, in windows as long as the model; those of all texts share batches."""
        windows = [list(self._windows(request.args[0])) for request in requests]
        flat = [question_item(question) for some in windows for question in some]
        totals = iter([total for total, _ in self._ask("score", flat)])
        return [fsum(next(totals) for _ in some) for some in windows]

    def _windows(self, text: str) -> Iterator[Question]:
        tokens, longest = self.tok_encode(text), self.max_length
        for window in get_rolling_token_windows(tokens, self.prefix_token_id, longest, context_len=1):
            context, continuation = make_disjoint_window(window)
            yield Question(tuple(context), tuple(continuation))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts = [self._prompt(request.args[0], request.args[1], number) for number, request in enumerate(requests)]
        return self._ask("write", [prompt_item(prompt) for prompt in prompts])

    def _prompt(self, context: str, options: Mapping[str, Any], number: int) -> Prompt:
        """Of a prompt that leaves too little room for the answer its end. Random numbers are of the request's place."""
        given = dict(normalize_gen_kwargs(dict(options), NEW))
        new = given.pop("max_gen_toks")
        stops = [stop for stop in handle_stop_sequences(given.pop("until", None), eos=None) if stop]
        room = self.max_length - new
        if room <= 0:
            raise UsageError(
                f"a task asks for up to {new} new tokens: must be fewer than the {self.max_length} that the model reads"
            )
        sampling = {name: given.pop(name) for name in SAMPLING if name in given}
        samples, beams = given.pop("do_sample", False), given.pop("num_beams", 1)
        if given or beams != 1:
            wrong = f"num_beams = {beams}" if beams != 1 else next(iter(given))
            raise UsageError(f"a task's generation_kwargs have {wrong}: must be among {', '.join(SAMPLING)}, do_sample")
        ids = (self.tok_encode(context) or [self.prefix_token_id])[-room:]
        if not samples:
            return Prompt(tuple(ids), new, tuple(stops), repetition_penalty=sampling.get("repetition_penalty", 1.0))
        return Prompt(tuple(ids), new, tuple(stops), **{"temperature": 1.0, **sampling}, number=number)

    def _ask(self, kind: Kind, items: Sequence[Item]) -> list[Any]:
        """Every item's answer; equal ones are computed once, those that are kept not at all."""
        names = [str(item) for item in items]
        unlike = dict(zip(names, items, strict=True))
        found = {name: self.answers.find([kind, item]) for name, item in unlike.items()}
        left = [item for name, item in unlike.items() if found[name] is None]
        with Progress("requests", len(unlike), done_before=len(unlike) - len(left), unit="") as progress:
            for batch in batches(left, BATCH[kind] * self.replica.number, SIZES[kind]):
                made = self.replica.ask(kind, batch)
                self.answers.keep([([kind, item], answer) for item, answer in zip(batch, made, strict=True)])
                found |= {str(item): answer for item, answer in zip(batch, made, strict=True)}
                progress.advance(sum(answer is not None for answer in found.values()))
        return [found[name] for name in names]


def _question_size(item: Item) -> int:
    return len(item[0]) + len(item[1])


def _prompt_size(item: Item) -> int:
    return len(item[0]) // 4 + item[1]  # a new token takes far longer than one of a prompt


SIZES: Mapping[str, Callable[[Item], int]] = {"score": _question_size, "write": _prompt_size}


def batches(items: Sequence[Item], most: int, size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Those that begin alike together; each of so many tokens at most, or of one item."""
    batch: list[Item] = []
    tokens = 0
    for item in sorted(items, key=lambda item: (tuple(item[0]), str(item[1:]))):
        if batch and tokens + size(item) > most:
            yield batch
            batch, tokens = [], 0
        batch.append(item)
        tokens += size(item)
    if batch:
        yield batch
