"""A conversation as the text that a model was trained on: Jinja templates, as transformers fills them."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError

Message = Mapping[str, Any]  # role, content, and what else a template knows
OPENING, CLOSING = "_generation_begins", "_generation_ends"  # names in a template, of characters or undefined
MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))  # Unicode's noncharacters, which no text should have


@dataclass(frozen=True)
class Filled:
    """A filled template. `text` has `mark` within each name of a control token that is not the template's.

    begun: for an assistant's message, by its number, where the prompt for it ends and its answer begins; only where the
    text begins with that prompt. tagged: what stands within {% generation %} parts, [begin, end) each. messages and
    beside: what it was filled with, with `mark` where the text has it.
    """

    text: str
    mark: str
    begun: Mapping[int, int]
    tagged: tuple[tuple[int, int], ...]
    messages: Sequence[Message]
    beside: Mapping[str, Any]

    @property
    def cuts(self) -> list[int]:
        """Where no token reaches over."""
        return sorted({*self.begun.values(), *(border for span in self.tagged for border in span)})


class ChatTemplate:
    """A Jinja template with a tokenizer's names for its control tokens.

    Only the template makes control tokens: a message that holds the name of one holds those characters. Templates come
    with models of unknown origin, so they run in a sandbox. Raises DataError for one that is no Jinja.
    """

    def __init__(self, source: str, tokenizer: Tokenizer):
        self.source, self.tokenizer = source, tokenizer
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise DataError(f"the chat template of {tokenizer.path} is no Jinja: {error}") from None

    def render(self, messages: Sequence[Message], answer_next: bool = True, **others: Any) -> str:
        """The conversation's text, up to where the assistant is to answer. Raises DataError for what is none, and for
        one that the template refuses.
        """
        _check(messages)
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=answer_next, **self.tokenizer.named_tokens, **others
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise DataError(f"the chat template of {self.tokenizer.path} refuses these messages: {error}") from None

    def encode(self, messages: Sequence[Message], answer_next: bool = True, **others: Any) -> list[int]:
        """The ids of that text. An answer in it has ids of its own, as it had when it was written: those of the prompt
        for it stand before them unchanged, whatever the answer begins with.
        """
        return [token for _, ids in self.parts(self.fill(messages, answer_next, **others)) for token in ids]

    def parts(self, filled: Filled) -> Iterator[tuple[int, list[int]]]:
        """The ids of a filled template part by part, each with its place in the text."""
        return self.tokenizer.encode_parts(filled.text, filled.cuts, filled.mark)

    def fill(self, messages: Sequence[Message], answer_next: bool = True, **others: Any) -> Filled:
        """Raises DataError as `render` does."""
        mark, opening, closing = _unused([messages, others], 3)
        kept_apart, beside = self._all_apart([messages, others], mark)
        tags = {OPENING: opening, CLOSING: closing}
        text, tagged = _without_tags(self.render(kept_apart, answer_next, **beside, **tags), opening, closing)
        prompts = {
            number: self._prompt(kept_apart[:number], beside)
            for number, message in enumerate(messages)
            if number and message["role"] == "assistant"
        }
        begun = {number: len(one) for number, one in prompts.items() if one is not None and text.startswith(one)}
        return Filled(text, mark, begun, tagged, kept_apart, beside)

    def marked(self, mark: str, messages: Sequence[Message], answer_next: bool = True, **others: Any) -> str:
        """The conversation's text with a mark within each name of a control token that is not the template's."""
        kept_apart, beside = self._all_apart([messages, others], mark)
        return self.render(kept_apart, answer_next, **beside)

    def shortened(self, filled: Filled, count: int) -> str:
        """The text of its first messages alone, marked as it is."""
        return self.render(filled.messages[:count], answer_next=False, **filled.beside)

    def _prompt(self, messages: Sequence[Message], others: Mapping[str, Any]) -> str | None:
        """None where the template refuses a conversation that ends there."""
        try:
            return self.render(messages, **others)
        except DataError:
            return None

    def _all_apart(self, given: Any, mark: str) -> Any:
        return _each_string(given, lambda text: self._apart(text, mark))

    def _apart(self, text: str, mark: str) -> str:
        """A mark within each name of a control token, so that it is none."""
        if self.tokenizer.control_names.search(text):
            for name in self._names:
                text = text.replace(name, name[0] + mark + name[1:])
        return text

    @cached_property
    def _names(self) -> list[str]:
        return sorted(self.tokenizer.special_tokens, key=len, reverse=True)


def _unused(given: Any, count: int) -> list[str]:
    """Characters that are nowhere in what is given."""
    text = json.dumps(given, ensure_ascii=False, default=str)
    marks = [mark for mark in MARKS if mark not in text][:count]
    if len(marks) < count:
        raise DataError(f"the messages hold the noncharacters U+FDD0 to U+FDEF, all but {len(marks)}: leave some out")
    return marks


def _without_tags(text: str, opening: str, closing: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text, and where in it the outermost pairs of the two characters stood."""
    plain, spans, depth, length, begin = [], [], 0, 0, 0
    for part in re.split(f"([{opening}{closing}])", text):
        if part == opening:
            begin = begin if depth else length
            depth += 1
        elif part == closing:
            depth -= 1
            spans += [] if depth else [(begin, length)]
        else:
            plain.append(part)
            length += len(part)
    return "".join(plain), tuple((begin, end) for begin, end in spans if begin < end)


def _check(messages: Sequence[Message]) -> None:
    """A template would make nothing of what lacks a role, without a word."""
    if not messages:
        raise DataError("messages is empty: must be a list of objects with a role")
    for number, one in enumerate(messages):
        if not isinstance(one, Mapping) or not isinstance(one.get("role"), str):
            raise DataError(f"message {number} is {one!r:.80}: must be an object with a role, a text")


def _each_string(value: Any, change: Any) -> Any:
    """The same tree with each string in it changed, names of fields too: a tool names its parameters by them."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_each_string(key, change): _each_string(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_each_string(inner, change) for inner in value]
    return value


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers' (utils/chat_template_utils.py), which templates are written for."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Sandbox(ImmutableSandboxedEnvironment):
    """What Jinja's allows, which goes by an object's type and an attribute's name, asked of it once for each two: a
    dialogue is rendered again for each answer, and to ask took half of the time.
    """

    def __init__(self, **how: Any):
        super().__init__(**how)
        self._known: dict[tuple[type, str], bool] = {}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        key = (type(obj), attr)
        if key not in self._known:
            self._known[key] = super().is_safe_attribute(obj, attr, value)
        return self._known[key]


class _Generation(Extension):
    """`{% generation %}`..`{% endgeneration %}` stand around what the assistant says; the text is what is inside,
    between the characters OPENING and CLOSING where `fill` gives them.
    """

    tags = {"generation"}  # noqa: RUF012  as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        opening, closing = (nodes.Output([nodes.Name(name, "load")], lineno=line) for name in (OPENING, CLOSING))
        return nodes.Scope([opening, *inside, closing]).set_lineno(line)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
             sort_keys: bool = False) -> str:  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(reason: str) -> None:
    raise TemplateError(reason)
