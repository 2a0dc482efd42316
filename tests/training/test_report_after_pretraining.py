"""The report of a run after pretraining: its algorithm, the curves of its numbers, its rows, and what it wrote."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_lite.config import config_from_tree, resolve
from megatron_lite.training.curves import objective_names, set_charts, with_deviation
from megatron_lite.training.metrics import StepMetrics
from megatron_lite.training.report import write_report
from megatron_lite.training.report_tables import left_out, sample_texts, spread
from megatron_lite.training.run_files import write_run_files

PAIRS = {"accuracy": 0.75, "margin": 1.5, "chosen_logprob": -40.0, "rejected_logprob": -50.0, "nll": 1.25}
REWARD = {"accuracy": 0.75, "margin": 1.5, "score": 3.0, "score_square": 25.0}


def make_run(directory: Path, numbers: dict[str, float], **sections: Any) -> Path:
    """Four steps; every second is validated on two sets, of which the second has twice the first's numbers."""
    tree = {
        "model": {"preset": "nano"},
        "optim": {"lr": 1e-3},
        "data": {"train": [{"path": "rows.jsonl"}]},
        "train": {"steps": 4, "global_batch_size": 8, "sequence_length": 32, "run_dir": str(directory)},
    }
    config = config_from_tree(tree | sections)
    write_run_files(directory, config, resolve(config, 1))
    lines = []
    for step in range(1, 5):
        named = dict(numbers)
        if step % 2 == 0:
            for name, value in {"loss": 2.0, **numbers}.items():
                named |= {f"valid_{name}/talk": value, f"valid_{name}/code": 2 * value}
                named |= {f"valid_{name}": 1.5 * value} if name != "loss" else {}
        lines.append(
            StepMetrics(
                step=step, tokens=256 * step, loss=3.0, grad_norm=1.0, lr=1e-3, seconds=0.5, data_seconds=0.0,
                tokens_per_second=512.0, mfu=None, memory_bytes=1 << 29, memory_kind="resident_set_peak",
                valid_loss=3.0 if step % 2 == 0 else None, named=named,
            ).to_json()
        )  # fmt: skip
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


def page_of(directory: Path) -> str:
    return write_report(directory).read_text(encoding="utf-8")


def headings(page: str) -> list[str]:
    return re.findall("<h3>(.*?)</h3>", page)


def test_dpo_has_the_curves_of_its_pairs_and_of_both_answers(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path, PAIRS, dpo={"beta": 0.25, "nll_weight": 0.5}, lora={"rank": 8}))
    assert "DPO (sigmoid loss, beta 0.25, NLL weight 0.5)" in page
    assert "LoRA of rank 8, alpha 32, on q_proj, v_proj" in page
    together = ["log-probability of answers, training", "log-probability of answers, validation"]
    own = ["accuracy: pairs whose chosen answer is ahead", "margin of chosen over rejected answers"]
    nll = "−log p of chosen answers, nats a token"
    apart = ["loss", *own, "log-probability of chosen answers", "log-probability of rejected answers", nll]
    assert headings(page) == [*own, nll, *together, *apart]
    assert re.search(r"validation loss</dt><dd class=\"value\">3.000</dd><dd class=\"remark\">mean of pairs", page)
    assert 'accuracy</dt><dd class="value">112.5%' in page  # half of 0.75 and half of 1.5
    for step in (2, 4):
        for name, value in (("chosen", -60), ("rejected", -75)):
            assert f"<title>{name} at {step}: {value}</title>" in page


def test_a_reward_model_has_its_scores_and_how_far_they_spread(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path, REWARD, reward={"criterion": "helpful"}))
    assert "reward model (Bradley-Terry, criterion helpful)" in page
    shown = [*headings(page)[:4]]
    assert shown[2:] == ["mean score", "standard deviation of scores"]
    assert "score square" not in page
    deviations = with_deviation([{"step": 1, **REWARD, "valid_score/a": 1.0, "valid_score_square/a": 5.0}])[0]
    assert (deviations["deviation"], deviations["valid_deviation/a"]) == (4.0, 2.0)  # sqrt(25 - 9), sqrt(5 - 1)


def test_fine_tuning_has_no_chart_of_what_it_does_not_count(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path, {}, sft={}))
    assert "supervised fine-tuning" in page
    assert "Mean over the trained tokens of a global batch, in nats." in page
    assert headings(page) == ["loss"]  # of each validation set
    for absent in ("What the objective counts", "Sample texts", "accuracy", "LoRA", "<h2>Data"):
        assert absent not in page
    assert re.search(r"<td>code</td><td class=\"number\">4.000</td><td class=\"number\">4.000</td>", page)


def test_a_number_that_no_title_is_known_of_has_a_chart_by_its_name() -> None:
    records = [
        {"step": 1, "loss": 1.0, "kl_from_start": 0.5, "valid_loss": 2.0, "evaluation/piqa/acc": 1.0, "mfu": None}
    ]
    assert objective_names(records) == ["kl_from_start"]


def test_many_sets_are_told_apart_by_colour_and_then_by_dashes() -> None:
    names = [f"set{number}" for number in range(9)]
    ((title, chart),) = set_charts([{"step": 1} | {f"valid_loss/{name}": 1.0 for name in names}])
    styles = re.findall(r'<circle class="dot-([^"]+)" cx="\d+" ', chart)
    assert title == "loss"
    assert len(styles) == len(set(styles)) == 9
    assert sum("dashed" in style for style in styles) == 3


def test_what_became_of_rows_is_told_for_each_set(tmp_path: Path) -> None:
    make_run(tmp_path, {}, sft={})
    counts = {"rows": 7168, "samples": 7012, "tokens": 1_234_567, "trained_tokens": 654_321, "packed_rows": 801}
    bad = {"an empty <answer>": 12, "two assistant turns": 3}
    one = {"name": "talk", "use": "training", "path": "talk.jsonl", **counts, "bad": bad, "dropped": 100, "cut": 0}
    none = {**one, "name": "code", "use": "validation", "bad": {}, "dropped": 0}
    tree = {"sets": [one | {"waste": 0.0123}, none | {"waste": None, "others": 4}]}
    (tmp_path / "rows.json").write_text(json.dumps(tree), encoding="utf-8")
    page = page_of(tmp_path)
    data = page[page.index("<h2>Data") :]
    for cell in ("7,168", "7,012", "1,234,567", "654,321", "801", "1.2%", "of another criterion (4)"):
        assert f">{cell}</td>" in data
    assert "an empty &lt;answer&gt; (12), two assistant turns (3), too long (100)" in data
    assert left_out(none) == "none"


def test_texts_are_shown_over_time_and_as_they_are(tmp_path: Path) -> None:
    make_run(tmp_path, {}, sft={})
    lines = [
        {"step": step, "prompt": prompt, "text": f"<b>{step}</b>\n\x07\u2028", "finish_reason": finish}
        for step in range(1, 12)
        for prompt, finish in (("who & why?", "stop"), ("how?", "length"))
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (tmp_path / "samples.jsonl").write_text(text, encoding="utf-8")
    page = page_of(tmp_path)
    texts = page[page.index("<h2>Sample texts") : page.index("<h2>Throughput")]
    assert re.findall(r'class="prompt">(.*?)<', texts) == ["who &amp; why?", "how?"]
    assert re.findall(r'<td class="number">(\d+)</td>', texts) == ["1", "3", "5", "7", "9", "11"] * 2
    assert "&lt;b&gt;11&lt;/b&gt;\n\u2407\u2028</td>" in texts
    assert texts.count("…") == 6  # of the second prompt's
    assert "<b>" not in texts
    assert [one.steps for one in sample_texts(tmp_path)] == [11, 11]


@pytest.mark.parametrize(("count", "kept"), [(1, [0]), (6, [0, 1, 2, 3, 4, 5]), (11, [0, 2, 4, 6, 8, 10])])
def test_the_first_and_the_last_are_always_among_those_shown(count: int, kept: list[int]) -> None:
    assert spread(range(count), 6) == kept
