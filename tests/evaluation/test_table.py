"""The table says what was measured, how sure it is, and whether figures in papers were measured in the same setting."""

from typing import Any

from megatron_lite.evaluation.table import rows, table


def results(**changes: Any) -> dict[str, Any]:
    """As lm-eval gives them: two benchmarks, and a group of two tasks in a group."""
    return {
        "results": {
            "piqa": {"name": "piqa", "alias": "piqa", "sample_len": 1838, "acc,none": 0.75, "acc_stderr,none": 0.01},
            "gsm8k_cot": {
                "exact_match,strict-match": 0.5,
                "exact_match_stderr,strict-match": 0.013767,
                "exact_match,flexible-extract": 0.625,
                "exact_match_stderr,flexible-extract": "N/A",
            },
            "left": {"acc,none": 1.0, "acc_stderr,none": 0.0},
            "right": {"acc,none": 0.0, "acc_stderr,none": 0.0},
            "part": {"acc,none": 0.25, "acc_stderr,none": 0.2, "sample_count": {"acc,none": 4}},
            "whole": {"acc,none": 0.25, "acc_stderr,none": 0.2, "sample_count": {"acc,none": 4}},
        },
        "group_subtasks": {"whole": ["part"], "part": ["left", "right"]},
        "configs": {
            "piqa": {"validation_split": "validation"},
            "gsm8k_cot": {"test_split": "test"},
            "left": {"test_split": "test", "validation_split": "dev"},
            "right": {"validation_split": "dev"},
        },
        "n-shot": {"piqa": 0, "gsm8k_cot": 8, "left": 5, "right": 5},
        "n-samples": {
            "piqa": {"original": 1838, "effective": 1838},
            "gsm8k_cot": {"original": 1319, "effective": 1319},
            "left": {"original": 9, "effective": 1},
            "right": {"original": 3, "effective": 3},
        },
    } | changes


def setting_of(task: str, found: dict[str, Any]) -> set[str]:
    return {row.setting for row in rows(found) if row.task == task}


def test_the_table_has_a_line_a_metric_and_a_group_in_place_of_its_tasks() -> None:
    lines = table(results(missing={"toxigen": "no package carries its documents"})).splitlines()
    assert lines == [
        "task       metric                           value     error  split       shots  documents  setting",
        "piqa       acc                             0.7500  ± 0.0100  validation      0      1,838  published",
        "gsm8k_cot  exact_match (strict-match)      0.5000  ± 0.0138  test            8      1,319  published",
        "gsm8k_cot  exact_match (flexible-extract)  0.6250            test            8      1,319  published",
        "part       acc                             0.2500  ± 0.2000  dev test        5          4",
        "whole      acc                             0.2500  ± 0.2000  dev test        5          4",
        "whole: 2 tasks",
        "toxigen: missing: no package carries its documents",
    ]


def test_what_differs_from_the_published_setting_is_named() -> None:
    limited = results()
    limited["n-samples"]["piqa"]["effective"] = 20
    limited["n-shot"]["gsm8k_cot"] = 2
    assert setting_of("piqa", limited) == {"published with 1,838 documents"}
    assert setting_of("gsm8k_cot", limited) == {"published with 8 shots"}
    elsewhere = results()
    elsewhere["configs"]["piqa"] = {"test_split": "test"}
    elsewhere["n-shot"]["piqa"] = 5
    assert setting_of("piqa", elsewhere) == {"published with split validation, 0 shots"}


def test_a_metric_that_no_paper_gives_is_not_marked() -> None:
    found = results()
    found["results"]["piqa"] = {"acc,none": 0.75, "brier_score,none": 0.25}
    assert [(row.metric, row.setting) for row in rows(found)][:2] == [("acc", "published"), ("brier_score", "")]


def test_mmlu_is_published_as_a_whole_alone() -> None:
    """14,042 questions with 5 shots over all subjects; of its parts the battery knows no published figure."""
    found = {
        "results": {"mmlu_x": {"acc,none": 0.5}, "mmlu": {"acc,none": 0.5, "acc_stderr,none": 0.1}},
        "group_subtasks": {"mmlu": ["mmlu_x"]},
        "configs": {"mmlu_x": {"test_split": "test"}},
        "n-shot": {"mmlu_x": 5},
        "n-samples": {"mmlu_x": {"original": 14042, "effective": 14042}},
    }
    assert setting_of("mmlu", found) == {"published"} and setting_of("mmlu_x", found) == {""}
    found["n-shot"] = {"mmlu_x": 0}
    assert setting_of("mmlu", found) == {"published with 5 shots"}
