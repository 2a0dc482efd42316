"""Answers on disk: found again for the same model and question alone, whatever a killed process left."""

import json

import pytest

from megatron_lite.errors import DataError, UsageError
from megatron_lite.evaluation.cache import Cache, Forgotten

ASKED = [["score", [[1, 2], [3]]], ["score", [[1], [2, 3]]], ["write", [[1, 2], 3]]]
ANSWERS = [[-0.1, True], [-1e-300, False], "text \n\u2028 \N{SNOWMAN}"]


def kept(path, identity="a") -> list:
    cache = Cache(path, identity)
    found = [cache.find(asked) for asked in ASKED]
    cache.close()
    return found


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    cache = Cache(path, "a")
    assert [cache.find(asked) for asked in ASKED] == [None, None, None]
    cache.keep(list(zip(ASKED[:2], ANSWERS[:2], strict=True)))
    cache.keep([(ASKED[2], ANSWERS[2])])
    assert [cache.find(asked) for asked in ASKED] == ANSWERS
    cache.close()
    return path


def test_answers_come_back_to_the_bit(path):
    assert kept(path) == ANSWERS


def test_another_model_has_no_answers_there_and_takes_none_away(path):
    assert kept(path, "b") == [None, None, None]
    cache = Cache(path, "b")
    cache.keep([(ASKED[0], [-5.0, False])])
    cache.close()
    assert kept(path, "b") == [[-5.0, False], None, None] and kept(path) == ANSWERS


def test_tokens_that_move_from_context_to_continuation_are_another_question(path):
    cache = Cache(path, "a")
    assert cache.find(["score", [[1, 2, 3], []]]) is None and cache.find(["write", [[1, 2], [3]]]) is None
    cache.close()


def test_wherever_a_kill_cut_the_file_whole_lines_are_found_and_the_next_ones_follow(path):
    whole = path.read_bytes()
    ends = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        lines = sum(end < cut for end in ends)
        assert kept(path) == [*ANSWERS[:lines], *[None] * (3 - lines)]
        cache = Cache(path, "a")
        cache.keep([(ASKED[2], ANSWERS[2])])
        cache.close()
        assert kept(path)[2] == ANSWERS[2]
        assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_a_file_of_something_else_is_refused(tmp_path):
    for text in ("key,answer\n", "[1]\n", '{"key": "a"}\n', "{}\n{}\n"):
        (tmp_path / "other").write_text(text)
        with pytest.raises(DataError, match="is no file of answers, or a damaged one"):
            Cache(tmp_path / "other", "a")
        assert (tmp_path / "other").read_text() == text


def test_two_evaluations_do_not_write_into_one_file(path):
    first = Cache(path, "a")
    with pytest.raises(UsageError, match="another evaluation is using it"):
        Cache(path, "a")
    first.close()
    assert kept(path) == ANSWERS


def test_a_path_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(UsageError, match="Is a directory"):
        Cache(tmp_path, "a")


def test_without_a_file_nothing_is_kept():
    answers = Forgotten()
    answers.keep([(ASKED[0], ANSWERS[0])])
    assert answers.find(ASKED[0]) is None
