"""How the GPU day's findings are judged, and the page that is drawn of them."""

from html.parser import HTMLParser

import pytest
from gpu.judge import RULES, Rule, Verdict, judge
from gpu.page import cell, draw, heading, identity, table_of, written
from gpu.plan import PLANS

START = {"section": "day", "what": "start", "toy": False, "ranks": 1}


def finding(section: str, what: str, **fields) -> dict:
    return {"section": section, "what": what, **fields}


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (finding("facts", "copy", share_of_published=0.83), "pass"),
        (finding("facts", "copy", share_of_published=0.829), "fail"),
        (finding("facts", "copy", bytes_per_second=4e12), "measured"),  # a GPU without a published figure
        (finding("stage", "step", role="last", excess_of_plan=0.02), "pass"),
        (finding("stage", "step", role="last", excess_of_plan=0.0201), "fail"),
        (finding("stage", "step", role="last", excess_of_plan=-0.03), "fail"),
        (finding("stage", "action", host_of_device=0.26), "fail"),
        (finding("stage", "layer", role="middle", ms=10.4), "pass"),
        (finding("stage", "layer", role="middle", ms=10.6), "fail"),
        (finding("stage", "layer", role="last", ms=30.0), "measured"),  # it has the head
        (finding("kernels", "case", worst_of_allowed=1.0, repeats=True, strides=True), "pass"),
        (finding("kernels", "case", worst_of_allowed=0.1, repeats=False, strides=True), "fail"),
        (finding("kernels", "case", worst_of_allowed="nan", repeats=True, strides=True), "fail"),
        (finding("training", "run", dtype="float64", far=1e-11, repeats=True), "pass"),
        (finding("training", "run", dtype="float64", far=1.1e-11, repeats=True), "fail"),
        (finding("training", "run", dtype="float32", far=1.1e-11, repeats=True), "pass"),
        (finding("training", "run", dtype="bfloat16", far=0.031, repeats=True), "fail"),
        (finding("training", "less kept", way="full", same_bits=False), "fail"),
        (finding("training", "less kept", way="PyTorch's attention", same_bits=False), "measured"),
        (finding("training", "waits of the host", count=1), "pass"),
        (finding("training", "waits of the host", count=2), "fail"),
        (finding("nccl", "calls", unchanged=False), "fail"),
        (finding("ranks", "against one process", far=1e-5), "pass"),
        (finding("connect", "layout", layout="pipeline 2", second_step_s=0.5), "pass"),
        (finding("connect", "layout", layout="pipeline 2", error="RankFailure: no answer from ranks [0, 1]"), "fail"),
        (finding("layouts", "against one process", dtype="float64", far=2e-10), "fail"),
        (finding("layouts", "against one process", dtype="float32", far=2e-10), "pass"),
        (finding("speed", "kernel", by="ours", share=0.84), "fail"),
        (finding("speed", "kernel", by="torch", share=0.2), "measured"),
        (finding("speed", "kernel", by="torch", error="RuntimeError"), "fail"),
        (finding("stage", "ended", seconds=3.0), "measured"),
        (finding("stage", "ended", died="signal SIGKILL"), "fail"),
        (finding("stage", "ended", skipped="no time"), "fail"),
    ],
)
def test_a_finding_is_judged_by_its_bound(found, word):
    assert judge(found, toy=False).word == word


def test_a_toys_times_and_memory_are_not_judged_and_its_numbers_are():
    assert judge(finding("stage", "layer", role="middle", ms=1000.0), toy=True) == Verdict("measured")
    assert judge(finding("stage", "step", excess_of_plan=0.5), toy=True) == Verdict("measured")
    assert judge(finding("kernels", "case", worst_of_allowed=2.0), toy=True).word == "fail"


def test_a_failure_says_the_value_and_the_bound():
    (reason,) = judge(finding("facts", "copy", share_of_published=0.5), toy=False).reasons
    assert reason == "share_of_published is 0.5, must be at least 0.83"
    (reason,) = judge(finding("training", "waits of the host", count=3), toy=False).reasons
    assert reason == "count is 3, must be at most 1"


def test_every_rule_is_of_a_section_that_is_in_a_plan():
    names = {section.name for plan in PLANS.values() for section in plan}
    assert {rule.section for rule in RULES} <= names


def test_all_rules_that_concern_a_finding_are_told():
    rules = (Rule("s", "x", "a", "<=", 1), Rule("s", "x", "b", "is", True))
    assert judge(finding("s", "x", a=2, b=False), False, rules).reasons == (
        "a is 2, must be at most 1",
        "b is False, must be True",
    )


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("bytes_per_second", 4.1234e12, "4.123 TB/s"),
        ("received_bytes_per_second", 4.5e10, "45 GB/s"),
        ("peak_bytes", 34 * 2**30, "34.00 GiB"),
        ("bytes", 3 * 2**20, "3.00 MiB"),
        ("share", 0.8771, "87.7 %"),
        ("excess_of_plan", -0.0123, "-1.2 %"),
        ("slower", 1.25, "1.250 ×"),
        ("forward_tflops", 612.345, "612.3"),
        ("even_share_tflops", 0.5, "0.5"),
        ("launches", 12345, "12,345"),
    ],
)
def test_a_number_is_written_as_its_name_says(key, value, text):
    assert written(key, value) == text


def test_headings_have_units():
    names = ("forward_tflops", "ms", "host_ms", "first_step_s", "head_dim")
    assert [heading(name) for name in names] == ["forward, TFLOP/s", "ms", "host, ms", "first step, s", "head dim"]


def test_failed_rows_come_first_and_absent_values_leave_empty_cells():
    rows = [
        (finding("s", "x", a=1), Verdict("pass")),
        (finding("s", "x", a=2, b=True), Verdict("fail", ("no",))),
    ]
    table = table_of("x", rows)
    assert table.columns == ["a", "b"]
    assert [[one.text for one in cells] for _, cells in table.rows] == [["2", "yes"], ["1", ""]]


def test_bars_are_parts_of_the_largest_value():
    rows = [(finding("s", "x", tflops=value), Verdict("measured")) for value in (200.0, 800.0)]
    assert [cells[0].part for _, cells in table_of("x", rows).rows] == [0.25, 1.0]
    assert cell("tflops", 3.0, None).part is None


def test_a_table_is_folded_only_where_every_row_passes():
    passing = [(finding("s", "x", a=n), Verdict("pass")) for n in range(20)]
    assert table_of("x", passing).folded
    assert not table_of("x", passing[:5]).folded
    assert not table_of("x", [*passing, (finding("s", "x", a=0), Verdict("fail", ("no",)))]).folded
    assert not table_of("x", [(finding("s", "x", a=n), Verdict("measured")) for n in range(20)]).folded


def test_a_finding_is_told_by_its_words_and_whole_numbers():
    found = finding("attention", "tiles", kernel="dq", rows=128, tflops=3.5, good=True, error="E")
    assert identity(found) == "kernel dq, rows 128"


class Texts(HTMLParser):
    """The page's text, and what it would fetch."""

    def __init__(self, page: str):
        super().__init__()
        self.texts, self.fetched, self.open = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.fetched += [value for name, value in attributes if name in ("src", "href") and not value.startswith("#")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and "style" not in self.open:
            self.texts.append(data.strip())


def test_the_page_fetches_nothing_closes_its_tags_and_says_what_failed_and_what_did_not_run():
    findings = [
        START,
        finding("facts", "machine", gpu="NVIDIA H200", torch="2.11.0+cu130", triton="3.6.0"),
        finding("facts", "copy", bytes_per_second=3e12, share_of_published=0.6),
        finding("facts", "ended", seconds=12.0),
        finding("stage", "raised", error="RuntimeError: <planted> & escaped"),
        finding("stage", "ended", seconds=3.0, died="exit code 1"),
    ]
    page = Texts(draw(findings))
    assert page.fetched == [] and page.open == []
    texts = " ".join(page.texts)
    assert "The GPU day" in texts and "NVIDIA H200" in texts
    assert "share_of_published is 0.6, must be at least 0.83" in texts
    assert "RuntimeError: <planted> & escaped" in texts and "exit code 1" in texts
    assert "facts: fail" in texts and "stage: fail" in texts and "kernels: not run" in texts
    assert "1 of 9" in texts


def test_a_page_of_two_gpus_has_their_sections_and_a_toy_says_so():
    page = " ".join(Texts(draw([START | {"ranks": 2, "toy": True}])).texts)
    assert "connect: not run" in page and "stage: not run" not in page
    assert "A toy of the GPU day" in page and "say nothing about a GPU" in page


def test_a_day_of_which_nothing_is_left_can_be_drawn():
    assert "0 of 9" in draw([])
