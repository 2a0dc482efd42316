"""The battery's groups hold what they are named for, and each name is a benchmark once."""

from pathlib import Path

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
    assert not names & GROUPS.keys() and BATTERY not in GROUPS
    assert set(EXECUTES_CODE) == {name for name in BY_TASK if name.startswith("humaneval")}


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


def test_the_documentation_states_split_documents_and_shots_of_each_benchmark() -> None:
    """As docs/evaluation.md's table has them: a line a task, by the settings that are asked."""
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    lines = {name: row for row in table for name in expand(["battery"]) if len(row) == 6 and f"`{name}`" in row[1]}
    assert lines.keys() == set(expand(["battery"]))
    for name, (_, _, split, shots, carried, published) in lines.items():
        benchmark = BY_TASK["mmlu_virology" if name == "mmlu" else name]
        setting = MMLU if name == "mmlu" else benchmark.published
        assert split.split()[0].rstrip(";") == benchmark.evaluated and int(shots) == benchmark.shots
        assert carried == (
            "no" if not benchmark.sources else "Arrow" if "hf_datasets" in benchmark.sources[0].file else "requests"
        )
        if setting:
            as_published = (setting.split, setting.shots) == (benchmark.evaluated, benchmark.shots)
            assert published.startswith("yes" if as_published else "no")
            assert f"{setting.documents:,}" in split
        else:
            assert published == "none known"
