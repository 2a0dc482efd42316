"""From a body to what the engine is asked: texts become ids here, and every bound is kept before anything is queued."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megatron_lite.data.chat_template import ChatTemplate
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError, UsageError
from megatron_lite.inference.engine import check_request
from megatron_lite.inference.model import LanguageModel
from megatron_lite.inference.requests import Limits, Request
from megatron_lite.inference.sampling import Sampling
from megatron_lite.serving.bodies import Asking, ChatBody, ChatMessage, CompletionBody, parsed
from megatron_lite.serving.refusals import Refusal
from megatron_lite.serving.settings import Settings

COMPLETION_TOKENS = 16  # that /v1/completions gives unless told, as OpenAI's does


@dataclass(frozen=True)
class Asked:
    """A body as requests, one a prompt, all but their numbers. `echo` are the prompts' texts, if they come back."""

    requests: tuple[Request, ...]
    stream: bool
    include_usage: bool
    echo: tuple[str, ...] | None = None

    @property
    def n(self) -> int:
        return self.requests[0].n

    @property
    def sequences(self) -> int:
        return self.n * len(self.requests)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(one.prompt) for one in self.requests)


@dataclass(frozen=True)
class Reader:
    """`limits` are the model's own, `template` its chat template if it has one, `sequences` how many a server holds."""

    model: LanguageModel
    tokenizer: Tokenizer
    template: ChatTemplate | None
    limits: Limits
    settings: Settings
    sequences: int

    def completion(self, raw: bytes) -> Asked:
        """Raises Refusal."""
        body = parsed(CompletionBody, raw)
        self._check_common(body)
        if body.echo and body.logprobs is not None:
            raise Refusal(400, "echo: prompts come back without log-probabilities; leave out logprobs", "echo")
        prompts = [self._ids(one) for one in body.prompt]
        echo = tuple(self._echoed(*pair) for pair in zip(body.prompt, prompts, strict=True)) if body.echo else None
        longest = max(map(len, prompts))
        budget = body.max_tokens or max(1, min(COMPLETION_TOKENS, self._room(longest)))
        return self._asked(body, prompts, budget, ("max_tokens", body.logprobs), echo)

    def chat(self, raw: bytes) -> Asked:
        """Raises Refusal."""
        body = parsed(ChatBody, raw)
        self._check_common(body)
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise Refusal(400, "max_tokens and max_completion_tokens: must be one of them", "max_tokens")
        if body.top_logprobs is not None and not body.logprobs:
            raise Refusal(400, "top_logprobs: needs logprobs to be true", "top_logprobs")
        prompt = self._rendered(body)
        name = "max_tokens" if body.max_tokens is not None else "max_completion_tokens"
        budget = body.max_completion_tokens or body.max_tokens or max(1, self._room(len(prompt)))
        wanted = (body.top_logprobs or 0) if body.logprobs else None
        return self._asked(body, [prompt], budget, (name, wanted), None)

    def question(self, messages: str | Sequence[Mapping[str, str]], temperature: float, seed: int,
                 tokens: int | None) -> Asked:  # fmt: skip
        """One answer to messages, or to a text that is continued, of so many tokens as have room (at most `tokens`).

        Raises Refusal.
        """
        body = Asking(model=self.settings.name, temperature=temperature, seed=seed)
        if isinstance(messages, str):
            prompt = self._ids(messages)
        else:
            prompt = self._rendered(parsed(ChatBody, json.dumps({"model": "", "messages": messages}).encode()))
        room = max(1, self._room(len(prompt)))
        return self._asked(body, [prompt], min(room, tokens or room), ("max_tokens", None), None)

    def _check_common(self, body: Asking) -> None:
        if body.model != self.settings.name:
            text = f"the model {body.model[:80]!r} does not exist: this server has {self.settings.name!r}"
            raise Refusal(404, text, "model", "model_not_found")
        if body.stream_options is not None and not body.stream:
            raise Refusal(400, "stream_options: needs stream to be true", "stream_options")
        size = self.tokenizer.vocab_size
        if wrong := [token for token in body.logit_bias or {} if int(token) >= size]:
            raise Refusal(400, f"logit_bias has token id {wrong[0]}: the vocabulary has {size}", "logit_bias")

    def _ids(self, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(self.tokenizer.encode_prompt(prompt))
        if (largest := max(prompt)) >= self.tokenizer.vocab_size:
            text = f"prompt has token id {largest}: the vocabulary has {self.tokenizer.vocab_size}"
            raise Refusal(400, text, "prompt")
        return prompt

    def _echoed(self, given: str | tuple[int, ...], ids: Sequence[int]) -> str:
        return given if isinstance(given, str) else self.tokenizer.decode(ids)

    def _rendered(self, body: ChatBody) -> tuple[int, ...]:
        if self.template is None:
            text = "messages: the model has no chat template; /v1/completions continues a prompt as it is"
            raise Refusal(400, text, "messages")
        others: dict[str, Any] = {}
        if body.tools and body.tool_choice != "none":
            if "tools" not in self.template.source:
                raise Refusal(400, "tools: the model's chat template knows none", "tools", "unsupported_parameter")
            others["tools"] = [tool.model_dump(exclude_none=True) for tool in body.tools]
        for number, message in enumerate(body.messages):
            for name in ("name", "tool_calls"):
                if getattr(message, name) and name not in self.template.source:
                    where = f"messages[{number}].{name}"
                    raise Refusal(400, f"{where}: the model's chat template knows none", where)
        try:
            return tuple(self.template.encode([_message(*one) for one in enumerate(body.messages)], **others))
        except DataError as error:
            raise Refusal(400, str(error), "messages") from None

    def _room(self, prompt: int) -> int:
        """New tokens that have a place after so many."""
        return min(self.model.longest - prompt, self.settings.output or self.model.longest)

    def _asked(
        self, body: Asking, prompts: Sequence[tuple[int, ...]], budget: int, named: tuple[str, int | None],
        echo: tuple[str, ...] | None,
    ) -> Asked:  # fmt: skip
        """`named` are the budget's parameter and how many most likely tokens are wanted."""
        name, wanted = named
        self._check_lengths(body, prompts, budget, name)
        seed = secrets.randbits(63) if body.seed is None else body.seed
        limits = replace(self.limits, max_new_tokens=budget, stop_strings=body.stop or ())
        # Equal prompts of one body are others' samples: the place in the body tells them apart.
        requests = tuple(
            Request(0, prompt, limits, _sampling(body), seed, body.n or 1, wanted, drawn_as=number)
            for number, prompt in enumerate(prompts)
        )
        for request in requests:
            try:
                check_request(request, self.model)
            except UsageError as error:
                raise Refusal(400, str(error), _prompt_name(body)) from None
        options = body.stream_options
        return Asked(requests, bool(body.stream), options is not None and bool(options.include_usage), echo)

    def _check_lengths(self, body: Asking, prompts: Sequence[tuple[int, ...]], budget: int, name: str) -> None:
        """Raises Refusal for more than the server's bounds or the model's longest sequence."""
        longest, settings = max(map(len, prompts)), self.settings
        most = min(settings.prompt or self.model.longest - 1, self.model.longest - 1)
        if longest > most:
            text = f"the prompt has {longest} tokens: at most {most} are taken"
            raise Refusal(400, text, _prompt_name(body), "context_length_exceeded")
        if budget > self._room(longest):
            text = f"{name} = {budget}: after a prompt of {longest} tokens at most {self._room(longest)} can be written"
            raise Refusal(400, text, name, "context_length_exceeded")
        if (asked := len(prompts) * (body.n or 1)) > self.sequences:
            raise Refusal(400, f"n x prompts = {asked}: this server holds {self.sequences} sequences", "n")


def _prompt_name(body: Asking) -> str:
    return "messages" if isinstance(body, ChatBody) else "prompt"


def _sampling(body: Asking) -> Sampling:
    """What is left out is as OpenAI has it."""
    return Sampling(
        1.0 if body.temperature is None else body.temperature, body.top_k, body.top_p, body.min_p,
        1.0 if body.repetition_penalty is None else body.repetition_penalty,
        body.presence_penalty or 0.0, body.frequency_penalty or 0.0,
        {int(token): bias for token, bias in (body.logit_bias or {}).items()},
    )  # fmt: skip


def _message(number: int, message: ChatMessage) -> dict[str, Any]:
    """As templates expect one: content is a text, a developer is the system, arguments of calls are objects."""
    made = message.model_dump(exclude_none=True)
    if message.role == "developer":
        made["role"] = "system"
    if isinstance(message.content, list):
        made["content"] = "\n".join(part.text for part in message.content)
    if message.content is None:
        if not message.tool_calls:
            raise Refusal(400, f"messages[{number}].content is missing", f"messages[{number}].content")
        made["content"] = ""
    for call in made.get("tool_calls", ()):
        call["function"]["arguments"] = _arguments(call["function"]["arguments"], number)
    return made


def _arguments(text: str, number: int) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        where = f"messages[{number}].tool_calls"
        raise Refusal(400, f"{where}: arguments must be the text of a JSON object", where)
    return found
