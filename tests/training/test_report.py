"""The report from a run's own files: what it shows, that it needs no network, and what it refuses."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from megatron_lite.config import config_from_tree, resolve
from megatron_lite.errors import DataError
from megatron_lite.parallel.pipeline.schedules import Placement
from megatron_lite.training.mesh_drawing import mesh_svg, rank_at
from megatron_lite.training.metrics import StepMetrics
from megatron_lite.training.report import parameter_count, write_report
from megatron_lite.training.run_files import read_layout, write_run_files


def make_run(directory: Path, world_size: int = 8, **parallel: Any) -> Path:
    """A run of six steps, validated at the third and the sixth, with NaN as the fourth gradient norm."""
    config = config_from_tree(
        {
            "model": {"preset": "nano", "num_hidden_layers": 5},
            "parallel": parallel,
            "optim": {"lr": 1e-3},
            "train": {"steps": 6, "global_batch_size": 8, "sequence_length": 32, "run_dir": str(directory)},
        }
    )
    write_run_files(directory, config, resolve(config, world_size))
    with (directory / "metrics.jsonl").open("w") as file:
        for step in range(1, 7):
            metrics = StepMetrics(
                step=step,
                tokens=256 * step,
                loss=6.0 - step / 2,
                grad_norm=float("nan") if step == 4 else 1.0,
                lr=1e-3,
                seconds=0.5,
                data_seconds=0.001,
                tokens_per_second=512.0,
                mfu=None,
                memory_bytes=1 << 29,
                memory_kind="resident_set_peak",
                valid_loss=6.1 - step / 2 if step % 3 == 0 else None,
            )
            file.write(metrics.to_json() + "\n")
    return directory


class References(HTMLParser):
    """Every attribute and element that could make a browser load something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.found += [tag] if tag in ("script", "link", "iframe", "img", "object", "embed") else []


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path, tensor=2, pipeline=2)).read_text(encoding="utf-8")
    parser = References()
    parser.feed(page)
    assert parser.found == []
    assert "url(" not in page
    assert "@import" not in page
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}


def test_the_page_shows_losses_layout_schedule_and_configuration(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path, tensor=2, pipeline=2)).read_text(encoding="utf-8")
    for text in ("3.100", "validation loss", "tensor 2 × pipeline 2 × data 2", "1f1b, 4 microbatches", "ZeRO-3"):
        assert text in page
    assert "blocks 0–2, embedding" in page
    assert "blocks 3–4, head" in page
    assert "Pipeline timeline" in page
    assert "num_hidden_layers: 5" in page
    assert "unigram" not in page
    assert "generated text" not in page


def test_what_the_quickstart_adds_is_shown(tmp_path: Path) -> None:
    make_run(tmp_path, world_size=1)
    (tmp_path / "unigram.json").write_text('{"cross_entropy": 6.25}')
    (tmp_path / "sample.txt").write_text("if a < b: <script>alert(1)</script>")
    (tmp_path / "curation").mkdir()
    read, kept = {"left": [1234, 5_600_000, 900_000]}, {"left": [1200, 5_000_000, 800_000]}
    curation = {"stages": [{"sources": {"perl-pod": read}}], "corpus": {"train": {"perl-pod": kept}, "valid": {}}}
    (tmp_path / "curation/report.json").write_text(json.dumps(curation))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for text in ("unigram model 6.250", "3.15 nats above the trained model", "perl-pod", "1,234", "5.6", ">34<"):
        assert text in page
    assert "if a &lt; b: &lt;script&gt;" in page
    assert "<script>" not in page
    assert 'href="curation/report.html"' in page
    assert "Pipeline" not in page


def test_several_validation_sets_are_told_apart_and_one_is_not_told_twice(tmp_path: Path) -> None:
    path = make_run(tmp_path, world_size=1) / "metrics.jsonl"
    assert "validation set" not in write_report(tmp_path).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line, (web, code) in zip((lines[2], lines[5]), ((4.5, 5.25), (3.125, 3.5)), strict=True):
        line |= {"valid_loss/web": web, "valid_loss/code": code}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "bits per byte" not in page
    for name, first, last in (("web", "4.500", "3.125"), ("code", "5.250", "3.500")):
        row = rf"<td>{name}</td><td class=\"number\">{first}</td><td class=\"number\">{last}</td>"
        assert re.search(row, page), name


def test_bits_per_byte_stand_beside_the_losses(tmp_path: Path) -> None:
    path = make_run(tmp_path, world_size=1) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines[-1] |= {"valid_loss/web": 4.5, "valid_loss/code": 5.25, "valid_bits_per_byte": 1.4375}
    lines[-1] |= {"valid_bits_per_byte/web": 1.25, "valid_bits_per_byte/code": 1.625}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert re.search(r"bits per byte</dt><dd class=\"value\">1.438<", page)
    for name, bits in (("web", "1.250"), ("code", "1.625")):
        assert re.search(rf"<td>{name}</td>.*<td class=\"number\">{bits}</td></tr>", page), name


def test_each_benchmark_has_a_chart_of_its_metrics_without_their_errors(tmp_path: Path) -> None:
    path = make_run(tmp_path, world_size=1) / "metrics.jsonl"
    assert "Benchmarks" not in write_report(tmp_path).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in (lines[2], lines[5]):
        line |= {"evaluation/piqa/acc": 0.5, "evaluation/piqa/acc_stderr": 0.1, "evaluation/piqa/acc_norm": 0.25}
        line |= {"evaluation/lambada/acc": 0.75, "evaluation/lambada/perplexity": 12.5}
        line |= {"evaluation/other/perplexity": float("inf")}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    charts = page[page.index("<h2>Benchmarks</h2>") : page.index("<h2>Throughput")]
    assert re.findall("<h3>(.*?)</h3>", charts) == ["lambada", "lambada, perplexity", "piqa"]
    assert re.findall('class="(?:chart-title|key)".*?>(.*?)<', charts) == ["acc", "perplexity", "acc", "acc_norm"]
    assert len(re.findall(r" at [36]: ", charts)) == 2 * 4  # points
    assert "stderr" not in charts and "acc_norm" in charts


def test_the_time_spent_waiting_for_data_is_told_as_a_share(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path, world_size=1)).read_text(encoding="utf-8")
    assert re.search(r"waiting for data</dt><dd class=\"value\">0.20%<", page)


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.yaml: not there"):
        write_report(tmp_path)
    make_run(tmp_path, world_size=1)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="no finished step"):
        write_report(tmp_path)


def test_the_layout_file_gives_back_what_was_resolved(tmp_path: Path) -> None:
    make_run(tmp_path, tensor=2, pipeline=2)
    layout = read_layout(tmp_path)
    assert (layout.world_size, layout.stage_layers, layout.data) == (8, (3, 2), 2)


def test_every_rank_of_the_layout_is_drawn_once_at_its_place(tmp_path: Path) -> None:
    layout = read_layout(make_run(tmp_path, tensor=2, pipeline=2))
    drawn = [int(rank) for rank in re.findall(r'font-size="15"[^>]*>(\d+)<', mesh_svg(layout, Placement(2)))]
    assert sorted(drawn) == list(range(8))
    assert [rank_at(layout, 1, 0, 0, tensor) for tensor in range(2)] == [4, 5]
    assert rank_at(layout, 0, 1, 0, 0) == 2


def test_parameters_are_counted_as_by_hand() -> None:
    tree = {"optim": {"lr": 1.0}, "train": {"steps": 1, "global_batch_size": 1, "sequence_length": 1, "run_dir": "x"}}
    tied = config_from_tree(tree | {"model": {"preset": "nano"}}).model
    untied = config_from_tree(tree | {"model": {"preset": "nano", "tie_word_embeddings": False}}).model
    block = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160 + 2 * 64
    assert parameter_count(tied) == 4 * block + 512 * 64 + 64
    assert parameter_count(untied) - parameter_count(tied) == 512 * 64
