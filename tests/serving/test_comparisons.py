"""Rows that people are to judge: which pairs and questions they are, and how bad ones are named."""

import gzip
import json
import re
from pathlib import Path

import pytest

from megatron_lite.errors import DataError, UsageError
from megatron_lite.serving.comparisons import Comparing, Pair, Question, read_comparisons

CHAT = [{"role": "user", "content": "Hello"}]


def file_of(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_answers_are_judged_two_by_two_and_questions_wait_for_theirs(tmp_path):
    path = file_of(
        tmp_path,
        {"prompt": "p", "answers": ["a", "b", "c"], "id": 7},
        "",
        {"messages": CHAT, "chosen": "good", "rejected": "bad", "criterion": "helpful"},
        {"messages": CHAT},
    )
    assert read_comparisons(path) == (
        Pair("p", ("a", "b")), Pair("p", ("a", "c")), Pair("p", ("b", "c")),
        Pair(tuple(CHAT), ("good", "bad")),
        Question(tuple(CHAT), f"{path} line 4"),
    )  # fmt: skip


def test_a_pair_that_comes_again_in_either_order_counts_once_and_questions_each_time(tmp_path):
    path = file_of(
        tmp_path, {"prompt": "p", "answers": ["a", "b"]}, {"prompt": "p", "chosen": "b", "rejected": "a"},
        {"prompt": "p"}, {"prompt": "p"},
    )  # fmt: skip
    pair, *questions = read_comparisons(path)
    assert pair == Pair("p", ("a", "b"))
    assert [question.repeat for question in questions] == [0, 1]
    assert questions[0].key != questions[1].key


def test_compressed_rows_are_read(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "p"}\n'))
    assert read_comparisons(path) == (Question("p", f"{path} line 1"),)


def test_a_pairs_key_is_of_both_orders_and_what_is_seen_of_one():
    pair = Pair("p", ("a", "b"))
    assert pair.key == pair.turned.key and pair.turned.answers == ("b", "a")
    assert pair.seen != pair.turned.seen
    assert len({pair.key, Pair("q", ("a", "b")).key, Pair("p", ("a", "c")).key}) == 3


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("no JSON", "is no JSON"),
        (r'{"prompt": "\ud800"}', "is no JSON"),
        ([1], "is no object but a JSON list"),
        ({}, "must have either prompt or messages"),
        ({"prompt": "p", "messages": CHAT}, "must have either prompt or messages"),
        ({"prompt": " "}, "has the prompt ' ': must be a text"),
        ({"prompt": 7}, "has the prompt 7: must be a text"),
        ({"messages": []}, "has the messages []: must be a list"),
        ({"messages": ["Hello"]}, "message 0 has 'Hello': must have role and content"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "message 0 has content, role, tool_calls"),
        ({"messages": [{"role": "User", "content": "x"}]}, "message 0 has the role 'User'"),
        ({"messages": [{"role": "user", "content": None}]}, "message 0 has the content None: must be a text"),
        ({"messages": [*CHAT, {"role": "assistant", "content": "x"}]}, "message 1 is the assistant's"),
        ({"messages": [{"role": "system", "content": "x"}]}, "has nothing that is answered"),
        ({"messages": [{"role": "assistant", "content": "x"}, *CHAT]}, "has nothing that is answered"),
        (
            {"messages": [*CHAT, {"role": "assistant", "content": "x"}, {"role": "assistant", "content": "y"}, *CHAT]},
            "has two of the assistant's messages in a row",
        ),
        ({"prompt": "p", "answers": ["a"]}, "has the answers ['a']: must be a list of two texts or more"),
        ({"prompt": "p", "answers": "ab"}, "has the answers 'ab': must be a list of two texts or more"),
        ({"prompt": "p", "answers": ["a", ""]}, "has the answer 1 '': must be a text that is not empty"),
        ({"prompt": "p", "answers": ["a", "b", "a"]}, "has the same text as answer 0 and as answer 2"),
        ({"prompt": "p", "chosen": "a"}, "has chosen: must have answers, or chosen and rejected"),
        ({"prompt": "p", "chosen": "a", "rejected": [{}]}, "has the rejected [{}]: must be a text"),
        ({"prompt": "p", "answers": ["a", "b"], "chosen": "a"}, "has answers, chosen: must have"),
    ],
)
def test_a_row_that_nobody_can_judge_is_named_with_its_file_and_line(tmp_path, row, what):
    path = file_of(tmp_path, {"prompt": "p"}, row)
    with pytest.raises(DataError, match=re.escape(f"{path} line 2 {what}")):
        read_comparisons(path)


def test_all_bad_rows_are_named_up_to_a_few(tmp_path):
    with pytest.raises(DataError, match=r"line 1 .*; 2 more cannot be judged either: line 3, 4$"):
        read_comparisons(file_of(tmp_path, {}, {"prompt": "p"}, {}, []))
    with pytest.raises(DataError, match=r"line 1 .*; 8 more cannot be judged either: line 2, 3, 4, 5, 6, \.\.$"):
        read_comparisons(file_of(tmp_path, *[{}] * 9))


def test_a_file_without_rows_is_named(tmp_path):
    with pytest.raises(DataError, match="there is nothing in it to judge"):
        read_comparisons(file_of(tmp_path, ""))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"criteria": ("helpful", "")}, "--criteria '': must be words"),
        ({"criteria": ("x" * 61,)}, "must be words of up to 60 characters"),
        ({"criteria": ("a", "a")}, "--criteria a,a: each must be there once"),
        ({"temperature": 0.0}, "--compare-temperature 0: must be above 0"),
        ({"temperature": float("nan")}, "--compare-temperature nan: must be above 0"),
        ({"tokens": 0}, "--compare-tokens 0: must be 1 or more"),
        ({"judgements": Path("out.jsonl.gz")}, "--judgements out.jsonl.gz: must end in .jsonl"),
    ],
)
def test_options_out_of_range_are_named(options, what):
    with pytest.raises(UsageError, match=re.escape(what)):
        Comparing(**{"items": (), "judgements": Path("out.jsonl")} | options)
