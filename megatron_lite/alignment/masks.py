"""From a dialogue to the ids that a model sees and which of them it is trained on: what the assistant says, to the end.

An answer is trained from where the prompt for it ends to the control token that ends the turn, that token included. The
ids before it are those that `ChatTemplate.encode` gives a model that is to answer there, so what is trained is what is
seen at inference. Three things make this hold, and none is taken for granted:

- Where an answer stands is found by rendering: the text of the prompt for it, render(before, answer_next), begins the
  whole text, and the text up to its end of turn is the same whether more turns follow or not. A template that drops,
  moves or changes earlier turns is refused in the rows where it does so. A template's own {% generation %} parts narrow
  what is trained within an answer; the end of turn is trained also where they leave it out.
- Ids are encoded part by part: control tokens, which only the template makes, and between them what lies before and
  after an answer's beginning. So no token reaches from the prompt into the answer, whatever that begins with. A model
  with SentencePiece's dummy prefix puts a space before each text; the answer is a part of a text and gets none, as
  generated tokens have none (Tokenizer.encode_after). A part behind a control token begins a text and gets it, as the
  same part gets it in every prompt.
- Nothing is told by a token's id: neither padding nor an end of document that is an end of turn too changes a mask.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from megatron_lite.alignment.dialogues import Continuation, Dialogue, Sample
from megatron_lite.alignment.rows import BadRow
from megatron_lite.alignment.store import Segment
from megatron_lite.data.chat_template import ChatTemplate, Filled, Message
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError

QUESTION, ANSWER = "Which way to the old harbour?", "Down the hill, then left."
PROBE: tuple[Message, ...] = ({"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER})
SYSTEM: Message = {"role": "system", "content": "Be brief."}


@dataclass(frozen=True)
class AnswerMasks:
    """A chat template whose answers can be told from all else. Build one with `answer_masks`.

    ends: names of the control tokens that end a turn; tagged: the template marks what is trained itself.
    """

    template: ChatTemplate
    ends: frozenset[str]
    tagged: bool

    def segment(self, dialogue: Dialogue) -> Segment:
        """A dialogue's ids up to its last answer's end of turn. Raises BadRow where the template refuses the messages,
        or does not keep them as they are said.
        """
        others: dict[str, Any] = {"tools": list(dialogue.tools)} if dialogue.tools else {}
        try:
            filled = self.template.fill(dialogue.messages, answer_next=False, **others)
            spans = self._spans(dialogue, filled, others)
        except DataError as error:
            raise BadRow("refused by the chat template", str(error)) from None
        _check_kept(dialogue, filled, spans)
        tokens: list[int] = []
        trained: list[bool] = []
        inside = [part for number, parts in spans.items() if number >= dialogue.given for part in parts]
        last = max(end for _, end in inside)
        for place, ids in self.template.parts(filled):
            if place < last:
                tokens += ids
                trained += [any(begin <= place < end for begin, end in inside)] * len(ids)
        return Segment(np.array(tokens, np.int64), np.array(trained, bool))

    def _spans(self, dialogue: Dialogue, filled: Filled, others: Mapping[str, Any]) -> dict[int, list[tuple[int, int]]]:
        """Of each message of the assistant, by number, what of the text is trained: [begin, end) each."""
        found: dict[int, list[tuple[int, int]]] = {}
        before = 0
        for number, message in enumerate(dialogue.messages):
            if message["role"] == "assistant":
                begin, end = self._answer(number, dialogue.messages, filled, others)
                if begin < before:
                    raise _changed(number, "the prompt for it lacks what stands before")
                found[number] = self._trained(number, begin, end, filled) if self.tagged else [(begin, end)]
                before = end
        return found

    def _answer(
        self, number: int, messages: tuple[Message, ...], filled: Filled, others: Mapping[str, Any]
    ) -> tuple[int, int]:
        """Where an answer stands, its end of turn included."""
        if number not in filled.begun:
            self.template.render(messages[:number], **others)  # which may say why
            raise _changed(number, "the text before it is not the prompt for it")
        begin = filled.begun[number]
        end = self.end_of_turn(filled.text, begin)
        if end is None:
            names = " or ".join(sorted(self.ends))
            raise BadRow("no end of turn", f"message {number}: the chat template does not end it with {names}")
        if number + 1 < len(messages) and self.template.shortened(filled, number + 1)[:end] != filled.text[:end]:
            raise _changed(number, "it reads otherwise once another turn follows")
        return begin, end

    def end_of_turn(self, text: str, begin: int) -> int | None:
        """Behind the first control token from there on that ends a turn."""
        names = self.template.tokenizer.control_names.finditer(text, begin)
        return next((name.end() for name in names if name[0] in self.ends), None)

    def _trained(self, number: int, begin: int, end: int, filled: Filled) -> list[tuple[int, int]]:
        """What the template's tags leave of an answer, and its end of turn."""
        parts = [(max(first, begin), min(last, end)) for first, last in filled.tagged if begin <= first < end]
        if not parts:
            raise BadRow("no generation part", f"message {number}: the chat template's generation part leaves it out")
        return [*parts[:-1], (parts[-1][0], end)]


def answer_masks(template: ChatTemplate) -> AnswerMasks:
    """Raises DataError for a template that no dialogue can be trained with: tried on one question and answer."""
    tokenizer = template.tokenizer
    messages = _accepted(template)
    prompt, filled = template.render(messages[:-1]), template.fill(messages, answer_next=False)
    text = filled.text
    begin = filled.begun.get(len(messages) - 1)
    if begin is None:
        raise _unfit(
            tokenizer, f"the prompt for an answer ends {prompt[-40:]!r}, which does not begin the answer's text"
        )
    place = text.find(ANSWER, begin)
    if place < 0:
        raise _unfit(tokenizer, "it leaves out what the assistant says")
    head = text[begin:place]
    if tokenizer.control_names.search(head) or (head.strip() and prompt == template.render(messages[:-1], False)):
        raise _unfit(tokenizer, f"with add_generation_prompt it must give {head!r}, which stands before an answer")
    end = tokenizer.control_names.search(text, place + len(ANSWER))
    if end is None:
        raise _unfit(tokenizer, "no control token follows an answer, so a model would not learn where to end")
    if outside := [text[first:last] for first, last in filled.tagged if first < begin]:
        raise _unfit(tokenizer, f"its generation part stands around more than answers: {outside[0][:60]!r}")
    stops = {name for name, token in tokenizer.special_tokens.items() if token in tokenizer.stop_ids}
    return AnswerMasks(template, frozenset({end[0]} | stops), bool(filled.tagged))


def continuation_segment(tokenizer: Tokenizer, sample: Continuation) -> Segment:
    """The ids of a plain prompt as `generate` has them, then the answer's and the end of the document, both trained."""
    prompt = tokenizer.encode_prompt(sample.prompt)
    encode = tokenizer.encode_after if sample.prompt else tokenizer.encode
    answer = [*encode(sample.answer), tokenizer.eod_id]
    return Segment(np.array(prompt + answer, np.int64), np.arange(len(prompt) + len(answer)) >= len(prompt))


@dataclass(frozen=True)
class Masks:
    """Ids and masks of any sample; `template` None where only plain text comes."""

    tokenizer: Tokenizer
    template: str | None

    @cached_property
    def answers(self) -> AnswerMasks | None:
        return None if self.template is None else answer_masks(ChatTemplate(self.template, self.tokenizer))

    def segment(self, sample: Sample) -> Segment:
        """Raises BadRow."""
        if isinstance(sample, Continuation):
            return continuation_segment(self.tokenizer, sample)
        if self.answers is None:
            raise BadRow("no chat template", "has messages, but there is no chat template to render them with")
        return self.answers.segment(sample)


def _accepted(template: ChatTemplate) -> tuple[Message, ...]:
    """The probe, with what the system says before it where the template wants that."""
    try:
        template.render(PROBE, answer_next=False)
    except DataError as error:
        try:
            template.render((SYSTEM, *PROBE), answer_next=False)
        except DataError:
            raise _unfit(template.tokenizer, f"it refuses a question and an answer: {error}") from None
        return (SYSTEM, *PROBE)
    return PROBE


def _unfit(tokenizer: Tokenizer, why: str) -> DataError:
    return DataError(f"the chat template of {tokenizer.path} cannot be trained with: {why}")


def _changed(number: int, how: str) -> BadRow:
    return BadRow("changed by the chat template", f"message {number}: the chat template changes earlier turns, {how}")


def _check_kept(dialogue: Dialogue, filled: Filled, spans: Mapping[int, list[tuple[int, int]]]) -> None:
    """Raises BadRow where the text lacks, white space aside, what a message says, a call's name or a tool's."""
    whole = _squeezed(filled.text.replace(filled.mark, ""))
    for number, message in enumerate(dialogue.messages):
        text = whole
        if message["role"] == "assistant":
            begin, end = filled.begun[number], spans[number][-1][1]
            text = _squeezed(filled.text[begin:end].replace(filled.mark, ""))
        said = [] if message["role"] == "tool" else [message["content"]]  # of tools templates make JSON
        said += [call.get("function", call)["name"] for call in message.get("tool_calls", ())]
        if missing := [one for one in said if _squeezed(one) not in text]:
            what = f"message {number} ({message['role']}): the chat template leaves out {missing[0]!r:.60}"
            raise BadRow("left out by the chat template", what)
    for tool in dialogue.tools:
        name = tool.get("function", tool).get("name", "")
        if not isinstance(name, str) or _squeezed(name) not in whole:
            raise BadRow("left out by the chat template", f"the chat template leaves out the tool {name!r:.60}")


def _squeezed(text: str) -> str:
    return "".join(text.split())
