"""What a row says in each form, and why it says nothing; expected dialogues are written out by hand."""

import json
import math
from typing import Any

import pytest

from megatron_lite.alignment.dialogues import Continuation, Dialogue, Pair, read_criterion, read_dialogue, read_pair
from megatron_lite.alignment.rows import BadRow


def said(role: str, content: Any, **others: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **others}


ASKED, TOLD, AGAIN, MORE = said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d")
BRIEF = said("system", "be brief")
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
CALLS = [{"type": "function", "function": {"name": "add", "arguments": {"n": 1}}}]
SHARED = [{"from": "system", "value": "be brief"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]

ROWS: dict[str, tuple[dict[str, Any], Any]] = {
    "messages": ({"messages": [BRIEF, ASKED, TOLD, AGAIN, MORE]}, Dialogue((BRIEF, ASKED, TOLD, AGAIN, MORE))),
    "what follows the last answer is left out": ({"messages": [ASKED, TOLD, AGAIN]}, Dialogue((ASKED, TOLD))),
    "two of the user's in a row": ({"messages": [ASKED, AGAIN, MORE]}, Dialogue((ASKED, AGAIN, MORE))),
    "conversations": ({"conversations": SHARED, "id": "x"}, Dialogue((BRIEF, ASKED, TOLD))),
    "conversations with roles": ({"conversations": [ASKED, TOLD]}, Dialogue((ASKED, TOLD))),
    "prompt and completion": ({"prompt": "a", "completion": " b"}, Continuation("a", " b")),
    "an empty prompt": ({"prompt": "", "completion": "b"}, Continuation("", "b")),
    "prompt and completion of messages": (
        {"prompt": [ASKED, TOLD, AGAIN], "completion": [MORE]}, Dialogue((ASKED, TOLD, AGAIN, MORE), given=3),
    ),
    "a text and a completion of messages": ({"prompt": "a", "completion": [TOLD]}, Dialogue((ASKED, TOLD), given=1)),
    "messages and a completion of text": ({"messages": [ASKED], "completion": "b"}, Dialogue((ASKED, TOLD), given=1)),
    "prompt beside whole messages": ({"prompt": "a", "messages": [ASKED, TOLD]}, Dialogue((ASKED, TOLD))),
    "calls": (
        {"messages": [ASKED, said("assistant", None, tool_calls=CALLS), said("tool", "2"), MORE], "tools": [TOOL]},
        Dialogue((ASKED, said("assistant", "", tool_calls=CALLS), said("tool", "2"), MORE), 0, (TOOL,)),
    ),
    "tools and arguments as JSON text": (
        {
            "messages": [ASKED, said("assistant", "", tool_calls=[{"name": "add", "arguments": '{"n": 1}'}])],
            "tools": json.dumps([TOOL]),
        },
        Dialogue((ASKED, said("assistant", "", tool_calls=[{"name": "add", "arguments": {"n": 1}}])), 0, (TOOL,)),
    ),
    "a call without arguments": (
        {"messages": [ASKED, said("assistant", "", tool_calls=[{"name": "now", "arguments": None}])], "tools": ""},
        Dialogue((ASKED, said("assistant", "", tool_calls=[{"name": "now", "arguments": {}}]))),
    ),
    "other words for roles": (
        {"messages": [said("developer", "be brief"), ASKED, TOLD, said("function", "2", name="add"), MORE]},
        Dialogue((BRIEF, ASKED, TOLD, said("tool", "2", name="add"), MORE)),
    ),
    "ShareGPT's tools": (
        {"conversations": [
            {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "observation", "value": "2"},
            {"from": "model", "value": "d"},
        ]},
        Dialogue((ASKED, TOLD, said("tool", "2"), MORE)),
    ),
    "content in parts": (
        {"messages": [said("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), TOLD]},
        Dialogue((said("user", "a\nb"), TOLD)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", ROWS)
def test_a_row_of_each_form_is_read_as_what_it_says(form):
    row, expected = ROWS[form]
    assert read_dialogue(row) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [ASKED, TOLD]}, Dialogue((BRIEF, ASKED, TOLD))),
        ({"messages": [said("system", "x"), ASKED, TOLD]}, Dialogue((said("system", "x"), ASKED, TOLD))),
        ({"prompt": [ASKED], "completion": "b"}, Dialogue((BRIEF, ASKED, TOLD), given=2)),
        ({"prompt": "a", "completion": "b"}, Continuation("a", "b")),
    ],
)
def test_a_system_prompt_begins_messages_that_have_none(row, expected):
    assert read_dialogue(row, "be brief") == expected


def bad(*messages: Any, **others: Any) -> dict[str, Any]:
    return {"messages": list(messages), **others}


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "nothing known": ({"text": "a", "id": 1}, "unknown form", "has the keys id, text: must have messages, conv"),
    "no keys": ({}, "unknown form", r"has the keys \(none\)"),
    "no messages": (bad(), "unknown form", r"messages is \[\]: must be a list of objects"),
    "messages as text": ({"messages": "a"}, "unknown form", "messages is 'a': must be a list"),
    "conversations as text": ({"conversations": "a"}, "unknown form", "conversations is 'a': must be a list"),
    "a message as text": (bad(ASKED, "b"), "unknown form", "message 1 is 'b': must be an object with role"),
    "no role": (bad(ASKED, {"content": "b"}), "no role", "message 1 has no role: must be one of system, user"),
    "no role in a prompt": (
        {"prompt": [{"content": "a"}], "completion": "b"}, "no role", "message 0 of prompt has no role",
    ),
    "no from": ({"conversations": [{"value": "a"}]}, "no role", "message 0 has no 'from': must be human, gpt"),
    "unknown role": (bad(said("narrator", "a"), TOLD), "unknown role", "message 0 has the role 'narrator': must be"),
    "unknown from": (
        {"conversations": [{"from": "bard", "value": "a"}]}, "unknown role", "message 0 has the role 'bard'",
    ),
    "content null": (bad(ASKED, said("assistant", None)), "no content", "message 1 has the content None: must be a"),
    "content a number": (bad(said("user", 3), TOLD), "no content", "message 0 has the content 3"),
    "content a picture": (bad(said("user", [{"image": "x"}]), TOLD), "no content", "message 0 has the content"),
    "an empty answer": (bad(ASKED, said("assistant", " \n")), "empty answer", "message 1: the assistant's content is"),
    "an empty one before others": (bad(ASKED, said("assistant", ""), AGAIN, MORE), "empty answer", "message 1: "),
    "an empty completion": ({"prompt": "a", "completion": " "}, "empty answer", "has an empty answer"),
    "two answers in a row": (
        bad(ASKED, TOLD, MORE), "two answers in a row", "messages 1 and 2 are both the assistant's",
    ),
    "an answer to an answer": ({"prompt": [ASKED, TOLD], "completion": "d"}, "two answers in a row", "1 and 2"),
    "the assistant first": (bad(TOLD, ASKED, MORE), "nothing to answer", "the assistant speaks first"),
    "no answer": (bad(BRIEF, ASKED), "no answer", "the assistant says nothing in it"),
    "a completion of the user": ({"prompt": "a", "completion": [AGAIN]}, "no answer", "begins with the role 'user'"),
    "no completion": ({"prompt": "a"}, "no completion", "has a prompt but no completion"),
    "completion null": ({"prompt": "a", "completion": None}, "no completion", "has a prompt but no completion"),
    "no prompt": ({"completion": "a"}, "no prompt", "has a completion but no prompt"),
    "calls as text": (bad(ASKED, said("assistant", "", tool_calls="add")), "bad tool call", "message 1 has the tool_c"),
    "a call without a name": (bad(ASKED, said("assistant", "", tool_calls=[{}])), "bad tool call", "must name its fun"),
    "arguments no JSON": (
        bad(ASKED, said("assistant", "", tool_calls=[{"name": "add", "arguments": "{"}])), "bad tool call",
        "message 1: arguments '{' must be a JSON object",
    ),
    "arguments a list": (
        bad(ASKED, said("assistant", "", tool_calls=[{"name": "add", "arguments": "[1]"}])), "bad tool call",
        r"arguments '\[1\]' must be a JSON object",
    ),
    "tools no JSON": (bad(ASKED, TOLD, tools="add"), "bad tools", "tools is 'add': must be a list or its JSON"),
    "tools of texts": (bad(ASKED, TOLD, tools=["add"]), "bad tools", r"tools is \['add'\]: must be a list of objects"),
}  # fmt: skip


@pytest.mark.parametrize("system_prompt", [None, "be brief"])
@pytest.mark.parametrize("case", BAD)
def test_a_row_that_says_nothing_to_train_on_says_why_with_or_without_a_system_prompt(case, system_prompt):
    row, reason, what = BAD[case]
    with pytest.raises(BadRow, match=what) as caught:
        read_dialogue(row, system_prompt)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


CHOSEN, REJECTED = Dialogue((ASKED, TOLD), given=1), Dialogue((ASKED, MORE), given=1)
BOTH = Pair(CHOSEN, REJECTED)
LONG = Pair(Dialogue((ASKED, TOLD, AGAIN, MORE), 3), Dialogue((ASKED, TOLD, AGAIN, TOLD), 3))
PAIRS: dict[str, tuple[dict[str, Any], Pair]] = {
    "texts": ({"prompt": "a", "chosen": "b", "rejected": "d"}, Pair(Continuation("a", "b"), Continuation("a", "d"))),
    "a text and messages": ({"prompt": "a", "chosen": [TOLD], "rejected": [MORE]}, BOTH),
    "messages and texts": ({"messages": [ASKED], "chosen": "b", "rejected": "d"}, BOTH),
    "a prompt of messages": ({"prompt": [ASKED], "chosen": [TOLD], "rejected": [MORE]}, BOTH),
    "conversations and texts": ({"conversations": SHARED[1:2], "chosen": "b", "rejected": "d"}, BOTH),
    "whole conversations": ({"chosen": [ASKED, TOLD], "rejected": [ASKED, MORE]}, BOTH),
    "whole ones with turns in common": (
        {"chosen": [ASKED, TOLD, AGAIN, MORE], "rejected": [ASKED, TOLD, AGAIN, TOLD]}, LONG,
    ),
    "whole ones beside their prompt": ({"prompt": "a", "chosen": [ASKED, TOLD], "rejected": [ASKED, MORE]}, BOTH),
    "whole ones beside their first messages": (
        {"prompt": [ASKED], "chosen": [ASKED, TOLD, AGAIN, MORE], "rejected": [ASKED, TOLD, AGAIN, TOLD]}, LONG,
    ),
    "whole ones, of which messages repeats one": (
        {"prompt": "a", "messages": [ASKED, TOLD], "chosen": [ASKED, TOLD], "rejected": [ASKED, MORE]}, BOTH,
    ),
    "what follows an answer is left out": (
        {"prompt": "a", "chosen": [TOLD, AGAIN], "rejected": [MORE, AGAIN]}, BOTH,
    ),
    "a margin": (
        {"prompt": "a", "chosen": [TOLD], "rejected": [MORE], "margin": 2, "score": 1.5}, Pair(CHOSEN, REJECTED, 2.0),
    ),
    "margin null": ({"prompt": "a", "chosen": [TOLD], "rejected": [MORE], "margin": None}, BOTH),
}  # fmt: skip


@pytest.mark.parametrize("form", PAIRS)
def test_a_pair_of_each_form_is_read_as_what_it_says(form):
    row, expected = PAIRS[form]
    assert read_pair(row) == expected


def test_conversations_written_down_as_text_are_read_as_their_turns():
    begun = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    pair = read_pair({"chosen": f"{begun} d", "rejected": f"{begun} It is\n\nso."})
    before = (ASKED, TOLD, AGAIN)
    other = said("assistant", "It is\n\nso.")
    assert pair == Pair(Dialogue((*before, MORE), given=3), Dialogue((*before, other), given=3))


def test_a_system_prompt_begins_both_answers_of_a_pair():
    found = read_pair(PAIRS["whole conversations"][0], "be brief")
    assert found == Pair(Dialogue((BRIEF, ASKED, TOLD), 2), Dialogue((BRIEF, ASKED, MORE), 2))


def of(**changed: Any) -> dict[str, Any]:
    return {"prompt": "a", "chosen": "b", "rejected": "d"} | changed


BAD_PAIRS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no rejected": ({"prompt": "a", "chosen": "b"}, "no rejected", "has no 'rejected'"),
    "rejected null": (of(rejected=None), "no rejected", "has no 'rejected'"),
    "no chosen": ({"prompt": "a", "rejected": "b"}, "no chosen", "has no 'chosen'"),
    "a dialogue": ({"messages": [ASKED, TOLD]}, "no chosen", "has no 'chosen'"),
    "texts without a prompt": ({"chosen": "b", "rejected": "d"}, "no prompt", "has neither prompt nor messages"),
    "answers without a prompt": ({"chosen": [TOLD], "rejected": [MORE]}, "no prompt", "has neither prompt nor mess"),
    "nothing in common": (
        {"chosen": [ASKED, TOLD], "rejected": [AGAIN, TOLD]}, "no prompt", "have no beginning in common",
    ),
    "another prompt": (
        {"prompt": "x", "chosen": [ASKED, TOLD], "rejected": [ASKED, MORE]}, "another prompt", "do not begin with the",
    ),
    "equal texts": (of(rejected="b"), "chosen equals rejected", "has the same answer"),
    "equal conversations": (
        {"chosen": [ASKED, TOLD], "rejected": [ASKED, TOLD]}, "chosen equals rejected", "has the same answer",
    ),
    "equal up to the last answer": (
        {"chosen": [ASKED, TOLD, AGAIN], "rejected": [ASKED, TOLD, ASKED]}, "no answer", "begins with the role 'user'",
    ),
    "an empty answer": (of(rejected="\n"), "empty answer", "has an empty answer"),
    "one goes on, the other ends": (
        {"chosen": [ASKED, TOLD, AGAIN, MORE], "rejected": [ASKED, TOLD]}, "no answer", "what follows the prompt",
    ),
    "a text and messages": (of(chosen=[TOLD]), "unknown form", "of chosen and rejected one is text, the other"),
    "chosen a number": (of(chosen=1), "unknown form", "chosen is 1: must be a list"),
    "NaN margin": (of(margin=math.nan), "no number", "margin is nan: must be a finite number"),
    "NaN score": (of(score_rejected=math.nan), "no number", "score_rejected is nan"),
    "infinite score": (of(score=-math.inf), "no number", "score is -inf"),
    "margin beyond floats": (of(margin=10**400), "no number", "margin is 1000"),
    "margin as text": (of(margin="1"), "no number", "margin is '1'"),
    "margin true": (of(margin=True), "no number", "margin is True"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_a_pair_that_prefers_nothing_says_why(case):
    row, reason, what = BAD_PAIRS[case]
    with pytest.raises(BadRow, match=what) as caught:
        read_pair(row)
    assert caught.value.reason == reason


def test_a_criterion_is_a_text_or_absent():
    assert read_criterion({"criterion": "helpful"}) == "helpful" and read_criterion({}) is None
    with pytest.raises(BadRow, match="criterion is 3: must be a text"):
        read_criterion({"criterion": 3})
