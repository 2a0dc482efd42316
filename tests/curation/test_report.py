"""The report: its numbers add up, and its page shows them without a network."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.curation_corpus import config_of, write_corpus

from megatron_lite.curation.engine import Pool
from megatron_lite.curation.pipeline import curate
from megatron_lite.curation.report import write_report
from megatron_lite.curation.shards import read_records

PROSE = ("paragraphs", "lines", "substring")  # stages that code passes by
RULED = ("web", "papers", "code")  # sources with rules


@pytest.fixture(scope="module")
def curation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    (folder / "web/A.jsonl").write_text('{"text": "<script>alert(1)</script>"}\n')
    links = {"training": str(folder / "report.html"), "datasets": [str(folder / "nothing")]}
    (folder / "report.html").write_text("a training report")
    with Pool(2) as engine:
        return curate(config_of(folder, folder / "out", report=links), engine)


@pytest.fixture(scope="module")
def page(curation) -> str:
    return write_report(curation).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report(curation, page) -> dict:
    return json.loads((curation.output / "report.json").read_text())


def add(sizes) -> list[int]:
    return [sum(column) for column in zip([0, 0, 0], *sizes, strict=True)]


def test_in_is_out_and_dropped_and_cut_out_in_every_stage_and_source(report):
    for stage in report["stages"]:
        flows = stage["sources"].values()
        for flow in [*flows, stage["total"]]:
            assert add([flow["left"], *flow["dropped"].values(), flow["edited"]]) == flow["entered"]
            assert flow["edited"][0] == 0  # an edit never makes a document more or less
            assert sum(flow["lengths"].values()) == sum(flow["languages"].values()) == flow["left"][0]
        for key in ("entered", "left", "edited"):
            assert stage["total"][key] == add(flow[key] for flow in flows)
        for reason, size in stage["total"]["dropped"].items():
            assert size == add(flow["dropped"][reason] for flow in flows if reason in flow["dropped"])


def test_what_leaves_a_stage_enters_the_next_that_looks_at_its_source(report):
    size = {source: flow["left"] for source, flow in report["stages"][0]["sources"].items()}
    for stage in report["stages"][1:]:
        looked_at = RULED if stage["name"] == "filter" else set(size) - {"code"} if stage["name"] in PROSE else size
        assert set(stage["sources"]) == set(looked_at)
        for source, flow in stage["sources"].items():
            assert flow["entered"] == size[source]
            size[source] = flow["left"]
    for source, left in size.items():
        parts = [part[source]["left"] for part in report["corpus"].values() if source in part]
        assert add(parts) == left


def test_the_corpus_is_as_large_as_its_files(curation, report):
    for part, flows in report["corpus"].items():
        texts = [
            record["text"] for path in (curation.output / "corpus" / part).iterdir() for record in read_records(path)
        ]
        assert add(flow["left"] for flow in flows.values())[:2] == [len(texts), sum(len(t.encode()) for t in texts)]


def test_every_reason_has_examples_that_have_it(report):
    for stage in report["stages"]:
        for reason, size in stage["total"]["dropped"].items():
            examples = stage["examples"][reason]
            assert len(examples) == min(size[0], 3)
            assert {one.get("rule") or one["reason"] for one in examples} == {reason}


def test_every_step_has_its_throughput(report, curation):
    assert [row["stage"] for row in report["throughput"]] == list(curation.finished)
    for row in report["throughput"]:
        assert row["seconds"] > 0 and row["text_bytes"] > 0 and row["input_bytes"] > 0


class Outward(HTMLParser):
    """Everything that a page would load or run."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        loads = [value for name, value in attributes if name in ("src", "data", "poster") or name.startswith("on")]
        self.found += loads + ([tag] if tag in ("script", "link", "iframe", "object", "embed") else [])


def test_the_page_loads_nothing_and_runs_nothing(page):
    parser = Outward()
    parser.feed(page)
    assert parser.found == []
    assert not re.search(r"url\(|@import", page)


def test_the_page_shows_reasons_and_texts_as_texts(page, report):
    for stage in report["stages"]:
        for reason in stage["total"]["dropped"]:
            assert reason in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "<script" not in page


def test_the_training_report_is_linked_once_it_is_there(page, curation, tmp_path):
    assert 'href="../report.html"' in page
    Path(curation.config.report.training).unlink()
    assert 'href="../report.html"' not in write_report(curation).read_text()


def test_tokens_are_shown_once_a_data_set_is_binarized(curation):
    fields = {
        "tokenizer": None,
        "dtype": "int32",
        "documents": 3,
        "sequences": 3,
        "tokens": 1_234_567,
        "max_token_id": 9,
    }
    sizes = {"bin_bytes": 1, "bin_xxh3": "", "idx_xxh3": ""}
    Path(f"{curation.config.report.datasets[0]}.json").write_text(json.dumps({**fields, **sizes}))
    assert "1,234,567" in write_report(curation).read_text()
