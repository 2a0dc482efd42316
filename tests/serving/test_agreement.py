"""Agreement by published examples and by closed forms."""

import pytest

from megatron_lite.serving.agreement import Agreement, agreement


def units(*annotators: str) -> list[list[str]]:
    """What each unit's annotators said, from a line for each annotator; a dot is a unit that one left out."""
    return [[value for value in column if value != "."] for column in zip(*annotators, strict=True)]


def test_two_annotators_have_the_alpha_of_krippendorffs_own_binary_example():
    found = agreement(units("0100000010", "1110010000"))
    assert (found.pairs, found.percent) == (10, pytest.approx(60))
    assert found.alpha == pytest.approx(0.095, abs=5e-4)


def test_four_annotators_with_gaps_have_the_alpha_of_krippendorffs_own_nominal_example():
    found = agreement(units("123321412...", "1233224125.3", ".3332342251.", "12332441251."))
    assert found.pairs == 11
    assert found.alpha == pytest.approx(0.743, abs=5e-4)


def test_those_who_say_the_same_agree_and_those_who_never_do_have_less_than_chance():
    assert agreement([["a", "a"], ["b", "b"]]) == Agreement(2, 100.0, 1.0)
    found = agreement([["a", "b"], ["b", "a"]])  # observed 1, expected 2 * 2 * 2 / (4 * 3)
    assert (found.percent, found.alpha) == (0.0, pytest.approx(1 - 1 / (8 / 12)))


def test_where_all_say_one_thing_chance_would_too_and_there_is_no_alpha():
    assert agreement([["a", "a"], ["a", "a", "a"]]) == Agreement(2, 100.0, None)


def test_pairs_that_fewer_than_two_judged_count_nothing():
    assert agreement([[], ["a"], ["b"]]) == Agreement(0, None, None)
    assert agreement([["a"], ["a", "b"], ["b", "b"]]) == agreement([["a", "b"], ["b", "b"]])
