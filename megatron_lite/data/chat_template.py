"""A conversation as the text that a model was trained on: Jinja templates, as transformers fills them."""

import json
from collections.abc import Mapping, Sequence
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
MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))  # Unicode's noncharacters, which no text should have


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
        """The ids of that text."""
        mark = self._mark([messages, others])
        return self.tokenizer.encode_marked(self.marked(mark, messages, answer_next, **others), but=mark)

    def marked(self, mark: str, messages: Sequence[Message], answer_next: bool = True, **others: Any) -> str:
        """The conversation's text with a mark within each name of a control token that is not the template's."""
        kept_apart, beside = _each_string([messages, others], lambda text: self._apart(text, mark))
        return self.render(kept_apart, answer_next, **beside)

    def _mark(self, given: Any) -> str:
        """A character that is nowhere in what is given."""
        text = json.dumps(given, ensure_ascii=False, default=str)
        mark = next((mark for mark in MARKS if mark not in text), None)
        if mark is None:
            raise DataError("the messages hold every one of the noncharacters U+FDD0 to U+FDEF: leave one out")
        return mark

    def _apart(self, text: str, mark: str) -> str:
        """A mark within each name of a control token, so that it is none."""
        for name in self._names:
            text = text.replace(name, name[0] + mark + name[1:])
        return text

    @cached_property
    def _names(self) -> list[str]:
        return sorted(self.tokenizer.special_tokens, key=len, reverse=True)


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
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(Extension):
    """`{% generation %}`..`{% endgeneration %}` stand around what the assistant says; the text is what is inside."""

    tags = {"generation"}  # noqa: RUF012  as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
             sort_keys: bool = False) -> str:  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(reason: str) -> None:
    raise TemplateError(reason)
