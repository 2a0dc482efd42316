"""A row as what it says: a dialogue, a text that continues another, or a pair of answers; or why it is none of these.

    messages       [{role, content, tool_calls?, ..}, ..], perhaps tools
    conversations  [{from: human | gpt | system | tool, value}, ..], as ShareGPT has them
    prompt, completion                  both text, or one of them or both messages
    chosen, rejected                    text or messages, after prompt, messages or conversations; or whole
                                        conversations, whose common beginning is the prompt; these may be texts of
                                        turns that begin "\\n\\nHuman:" and "\\n\\nAssistant:", as in HH-RLHF

Only answers are trained: of a dialogue all that the assistant says, of the others what follows the prompt.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from megatron_lite.alignment.rows import BadRow, Row
from megatron_lite.data.chat_template import Message

ROLES = ("system", "user", "assistant", "tool")
SAID_AS = {"developer": "system", "function": "tool", "ipython": "tool"}
SHARED_AS = {"human": "user", "gpt": "assistant", "model": "assistant", "observation": "tool"}
TURN = re.compile(r"\n\n(Human|Assistant):")
SCORES = ("margin", "score", "score_chosen", "score_rejected", "chosen_score", "rejected_score")


@dataclass(frozen=True)
class Dialogue:
    """What is said in turn, ending with the assistant; of the first `given` messages no token is trained."""

    messages: tuple[Message, ...]
    given: int = 0
    tools: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Continuation:
    """Plain text, of which `answer` is trained."""

    prompt: str
    answer: str


Sample = Dialogue | Continuation


@dataclass(frozen=True)
class Pair:
    """`margin`: by how much the chosen answer should score above the rejected one, 0 where the row does not say."""

    chosen: Sample
    rejected: Sample
    margin: float = 0.0


def read_dialogue(row: Row, system_prompt: str | None = None) -> Sample:
    """Of a row without a preference. `system_prompt` begins messages that have none. Raises BadRow."""
    context, tools = _context(row), _tools(row)
    if row.get("completion") is not None:
        if context is None:
            raise BadRow("no prompt", "has a completion but no prompt")
        sample = _joined(context, _spoken(row["completion"], "completion"), tools)
        return _with_system(_checked(sample), system_prompt)
    if context is None:
        wanted = "must have messages, conversations, or prompt and completion"
        raise BadRow("unknown form", f"has the keys {', '.join(sorted(row)) or '(none)'}: {wanted}")
    if isinstance(context, str) or (row.get("messages") is None and row.get("conversations") is None):
        raise BadRow("no completion", "has a prompt but no completion")
    return _with_system(_checked(Dialogue(tuple(context), 0, tools)), system_prompt)


def read_pair(row: Row, system_prompt: str | None = None) -> Pair:
    """Of a row that prefers one answer to another. Raises BadRow."""
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            raise BadRow(f"no {name}", f"has no {name!r}")
    margin = _numbers(row).get("margin", 0.0)
    tools = _tools(row)
    answers = [_spoken(row[name], name) for name in ("chosen", "rejected")]
    if isinstance(answers[0], str) != isinstance(answers[1], str):
        raise BadRow("unknown form", "of chosen and rejected one is text, the other messages: must be of a kind")
    context = _context(row)
    if context is None:
        answers = [_turns(answer) if isinstance(answer, str) else answer for answer in answers]
    context, answers = _shared(context, answers)
    chosen, rejected = (_checked(_joined(context, answer, tools)) for answer in answers)
    if chosen == rejected:
        raise BadRow("chosen equals rejected", "has the same answer as chosen and as rejected")
    return Pair(_with_system(chosen, system_prompt), _with_system(rejected, system_prompt), margin)


def read_criterion(row: Row) -> str | None:
    """What a pair was judged by. Raises BadRow for what is no text."""
    found = row.get("criterion")
    if found is not None and not isinstance(found, str):
        raise BadRow("no criterion", f"criterion is {found!r:.80}: must be a text")
    return found


def _context(row: Row) -> str | list[Message] | None:
    """What stands before an answer, or holds it: messages, or a text; None where the row has neither."""
    given = [name for name in ("messages", "conversations", "prompt") if row.get(name) is not None]
    if not given:
        return None
    name = given[0]
    if name == "conversations":
        return [_shared_message(number, one) for number, one in enumerate(_list(row[name], name))]
    return _spoken(row[name], name)


def _shared(
    context: str | list[Message] | None, answers: Sequence[str | list[Message]]
) -> tuple[str | list[Message], list[str | list[Message]]]:
    """The prompt, and what follows it. Whole conversations repeat the prompt, or have it as their common beginning."""
    if not isinstance(answers[0], list) or not isinstance(answers[1], list):
        if context is None:
            raise BadRow("no prompt", "has neither prompt nor messages before its answers")
        return context, list(answers)
    both: list[list[Message]] = [list(one) for one in answers]  # type: ignore[arg-type]  # of a kind
    if all(one and one[0]["role"] == "assistant" for one in both):
        if context is None:
            raise BadRow("no prompt", "has neither prompt nor messages before its answers")
        return context, [*both]
    pairs = zip(*both, strict=False)
    count = next((n for n, (a, b) in enumerate(pairs) if a != b), min(map(len, both)))
    prompt = both[0][:count]
    if count == len(both[0]) == len(both[1]):
        raise BadRow("chosen equals rejected", "has the same answer as chosen and as rejected")
    _check_beginning(context, prompt, both)
    return prompt, [one[count:] for one in both]


def _turns(text: str) -> str | list[Message]:
    """The messages of a conversation that is written down as text; any other as it is."""
    if TURN.match(text) is None:
        return text
    _, *parts = TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": said.strip()} for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _check_beginning(
    context: str | list[Message] | None, prompt: list[Message], whole: Sequence[list[Message]]
) -> None:
    """The row's prompt may be the text that is answered, the first messages, or one of the conversations again."""
    if not prompt:
        raise BadRow("no prompt", "chosen and rejected have no beginning in common that would be the prompt")
    same = (
        context is None
        or (isinstance(context, str) and prompt[-1].get("content") == context)
        or (isinstance(context, list) and (prompt[: len(context)] == context or context in whole))
    )
    if not same:
        raise BadRow("another prompt", "chosen and rejected do not begin with the row's prompt")


def _joined(prompt: str | list[Message], answer: str | list[Message], tools: tuple[Any, ...]) -> Sample:
    """A text beside messages is what the user, or the assistant, says."""
    if isinstance(prompt, str) and isinstance(answer, str):
        return Continuation(prompt, answer)
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    after = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    if not after or after[0]["role"] != "assistant":
        found = f"begins with the role {after[0]['role']!r}" if after else "is empty"
        raise BadRow("no answer", f"what follows the prompt {found}: must begin with the assistant")
    return Dialogue((*before, *after), len(before), tools)


def _with_system(sample: Sample, system_prompt: str | None) -> Sample:
    if system_prompt is None or isinstance(sample, Continuation) or sample.messages[0]["role"] == "system":
        return sample
    system = {"role": "system", "content": system_prompt}
    return Dialogue((system, *sample.messages), sample.given + (sample.given > 0), sample.tools)


def _checked(sample: Sample) -> Sample:
    """Without what follows the last answer. Raises BadRow."""
    if isinstance(sample, Continuation):
        if not sample.answer.strip():
            raise BadRow("empty answer", "has an empty answer")
        return sample
    messages = sample.messages
    answers = [number for number, one in enumerate(messages) if one["role"] == "assistant"]
    if not answers:
        raise BadRow("no answer", "the assistant says nothing in it")
    if all(one["role"] == "system" for one in messages[: answers[0]]):
        raise BadRow("nothing to answer", "the assistant speaks first: what it answers must stand before")
    for number in answers:
        if not messages[number]["content"].strip() and not messages[number].get("tool_calls"):
            raise BadRow("empty answer", f"message {number}: the assistant's content is empty")
        if number - 1 in answers:
            raise BadRow("two answers in a row", f"messages {number - 1} and {number} are both the assistant's")
    return Dialogue(messages[: answers[-1] + 1], sample.given, sample.tools)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise BadRow("unknown form", f"{name} is {value!r:.80}: must be a list of objects, one or more")
    return value


def _spoken(value: Any, name: str) -> str | list[Message]:
    """A text as it is, or messages as templates expect them."""
    if isinstance(value, str):
        if name == "messages":
            raise BadRow("unknown form", f"messages is {value!r:.80}: must be a list of objects, one or more")
        return value
    return [_message(number, one, name) for number, one in enumerate(_list(value, name))]


def _message(number: int, one: Any, name: str = "messages") -> Message:
    """Content is a text; arguments of calls are objects; a developer is the system."""
    where = f"message {number}" if name == "messages" else f"message {number} of {name}"
    if not isinstance(one, Mapping):
        raise BadRow("unknown form", f"{where} is {one!r:.80}: must be an object with role and content")
    role = one.get("role")
    if not isinstance(role, str):
        raise BadRow("no role", f"{where} has no role: must be one of {', '.join(ROLES)}")
    role = SAID_AS.get(role, role)
    if role not in ROLES:
        raise BadRow("unknown role", f"{where} has the role {role!r:.40}: must be one of {', '.join(ROLES)}")
    made = {key: value for key, value in one.items() if value is not None and key not in ("role", "content")}
    if "tool_calls" in made:
        made["tool_calls"] = [_call(call, where) for call in _calls(made["tool_calls"], where)]
    calls = role == "assistant" and bool(made.get("tool_calls"))
    return {"role": role, "content": _content(one.get("content"), where, calls), **made}


def _content(content: Any, where: str, calls: bool) -> str:
    if content is None and calls:
        return ""
    if isinstance(content, list) and content:
        texts = [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        content = "\n".join(texts) if len(texts) == len(content) else content
    if not isinstance(content, str):
        raise BadRow("no content", f"{where} has the content {content!r:.80}: must be a text")
    return content


def _calls(calls: Any, where: str) -> list[Any]:
    if not isinstance(calls, list):
        raise BadRow("bad tool call", f"{where} has the tool_calls {calls!r:.80}: must be a list")
    return calls


def _call(call: Any, where: str) -> Any:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRow("bad tool call", f"{where} has the tool call {call!r:.80}: must name its function")
    given = arguments = function.get("arguments")
    if isinstance(given, str):
        with suppress(ValueError):
            arguments = json.loads(given)
    if not isinstance(arguments, Mapping | None):
        raise BadRow("bad tool call", f"{where}: arguments {given!r:.80} must be a JSON object")
    changed = {**function, "arguments": arguments or {}}
    return {**call, "function": changed} if "function" in call else changed


def _shared_message(number: int, one: Any) -> Message:
    """ShareGPT's {from, value}; messages with roles under the name conversations are taken as they are."""
    if not isinstance(one, Mapping) or "role" in one:
        return _message(number, one)
    speaker = one.get("from")
    if not isinstance(speaker, str):
        raise BadRow("no role", f"message {number} has no 'from': must be human, gpt, system or tool")
    others = {key: value for key, value in one.items() if key not in ("from", "value")}
    return _message(number, {**others, "role": SHARED_AS.get(speaker, speaker), "content": one.get("value")})


def _tools(row: Row) -> tuple[Any, ...]:
    """What the assistant may call: a list, or its JSON as text (a column of objects would mix their fields)."""
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError:
            raise BadRow("bad tools", f"tools is {tools!r:.80}: must be a list or its JSON") from None
    if not tools:
        return ()
    if not isinstance(tools, list) or not all(isinstance(one, Mapping) for one in tools):
        raise BadRow("bad tools", f"tools is {tools!r:.80}: must be a list of objects")
    return tuple(tools)


def _numbers(row: Row) -> dict[str, float]:
    """A row's margin and scores. Raises BadRow for one that is no number: its row was not judged well."""
    found = {name: row[name] for name in SCORES if row.get(name) is not None}
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise BadRow("no number", f"{name} is {value!r:.40}: must be a finite number")
    return {name: float(value) for name, value in found.items()}
