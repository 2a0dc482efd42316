"""pass@k is the share of choices of k samples that hold a passing one; programs are prompt, answer and tests."""

from itertools import combinations

import pytest

from megatron_lite.evaluation.human_eval import (
    build_predictions,
    build_predictions_instruct,
    estimate_pass_at_k,
    pass_at_k,
)


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_the_estimate_is_the_share_of_choices_with_a_passing_sample(samples: int) -> None:
    for passed in range(samples + 1):
        for k in range(1, samples + 1):
            choices = list(combinations([True] * passed + [False] * (samples - passed), k))
            share = sum(any(choice) for choice in choices) / len(choices)
            assert estimate_pass_at_k(samples, passed, k) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("k", [0, 4])
def test_k_is_1_to_the_number_of_samples(k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of 3 samples: k must be 1 to 3"):
        estimate_pass_at_k(3, 1, k)


def test_answers_are_executed_with_the_tests_of_their_document() -> None:
    doc = {"prompt": "def double(x):\n", "test": "def check(f):\n    assert f(4) == 8\n", "entry_point": "double"}
    answers = ["    return 2 * x", "    return x ** 2", "    import sys; sys.exit(0)", "    return x + x"]
    (programs,) = build_predictions([answers], [doc])
    tests = f"{doc['test']}\ncheck({doc['entry_point']})"
    assert pass_at_k([tests], [programs], [1, 3]) == pytest.approx({"pass@1": 2 / 4, "pass@3": 1.0})


def test_what_an_answer_says_behind_its_code_is_not_executed() -> None:
    doc = {"prompt": "def double(x):\n"}
    answers = ["    return 2 * x\n```\nThis doubles x.\n```", "    return x + x"]
    assert build_predictions_instruct([answers], [doc]) == [
        ["def double(x):\n    return 2 * x\n", "def double(x):\n    return x + x"]
    ]
