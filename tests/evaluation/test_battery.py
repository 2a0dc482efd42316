"""The battery's groups hold what they are named for, and each name is a benchmark once."""

from megatron_lite.evaluation.battery import (
    BATTERY,
    BENCHMARKS,
    BY_TASK,
    EXECUTES_CODE,
    GROUPS,
    MMLU,
    MMLU_GROUPS,
    MMLU_TASKS,
    expand,
)


def test_every_name_of_a_group_is_a_benchmark_and_every_benchmark_has_one_name() -> None:
    assert len(BY_TASK) == len(BENCHMARKS)
    names = {name for group in GROUPS.values() for name in group}
    assert names - {"mmlu"} <= BY_TASK.keys()
    assert not names & GROUPS.keys() and BATTERY not in GROUPS and set(EXECUTES_CODE) <= names


def test_mmlu_has_57_subjects() -> None:
    assert len(set(MMLU_TASKS)) == 57
    assert not set(MMLU_TASKS) & set(MMLU_GROUPS) and MMLU.documents == 14042


def test_the_battery_asks_for_all_that_the_groups_name_and_for_mmlu_as_a_whole() -> None:
    assert expand(["battery"]) == (
        "mmlu",
        "arc_easy",
        "arc_challenge",
        "sciq",
        "hellaswag",
        "piqa",
        "winogrande",
        "boolq",
        "openbookqa",
        "humaneval",
        "gsm8k_cot",
        "lambada_openai",
        "truthfulqa_mc1",
        "truthfulqa_mc2",
        "toxigen",
        "crows_pairs_english",
    )


def test_names_come_once_and_in_order() -> None:
    assert expand(["piqa", "reasoning", "other", "piqa"]) == ("piqa", "hellaswag", "winogrande", "boolq", "other")
    assert expand(["mmlu_virology", "mmlu_stem", "mmlu"]) == ("mmlu",)
    assert "mmlu_virology" in expand(["science"]) and "mmlu" not in expand(["science"])


def test_a_name_set_apart_is_not_taken_for_a_group() -> None:
    assert expand(["science", "code"], {"science"}) == ("science", "humaneval")
