"""The benchmarks' table, bounds, timing and picture, without a GPU: clocks are given, nothing is waited for."""

import csv
from dataclasses import replace

import pytest
import torch
from megatron_lite.kernels import rms_norm
from megatron_lite.kernels.benchmarks import __main__ as command
from megatron_lite.kernels.benchmarks import gate, ours, plot, timing
from megatron_lite.kernels.benchmarks.compiled import Facts
from megatron_lite.kernels.benchmarks.operation import Kernel, Memory, Operation
from megatron_lite.kernels.benchmarks.roofline import Device, least_seconds, roofline_rows
from megatron_lite.kernels.benchmarks.table import Row, printed, written
from megatron_lite.kernels.costs import Cost
from megatron_lite.kernels.reference import rms_norm as reference

FACTS = Facts(40, 0, 64, 75, 6, 0, (), 0, 0, 0, 200, 10.0)


def small(memory: Memory):
    return memory.normal(4, 64), memory.normal(64), 1e-5


OPERATION = Operation(
    "rms_norm",
    rms_norm.rms_norm,
    reference.rms_norm,
    small,
    Cost(600, 400, flops=8000),
    {"forward_kernel": Kernel(256)},
)


def test_a_bound_is_bytes_over_bandwidth_and_for_products_flops_where_they_take_longer():
    device = Device(bytes=1e3, flops=1e3)
    assert least_seconds(OPERATION, device) == 1.0
    assert least_seconds(replace(OPERATION, by_products=True), device) == 8.0
    assert least_seconds(replace(OPERATION, by_products=True), replace(device, flops=1e9)) == 1.0


def test_published_figures_bound_a_norm_of_a_megabyte():
    """2 MB at 3.35 TB/s."""
    (row,) = roofline_rows([replace(OPERATION, cost=Cost(10**6, 10**6))], "H100 SXM")
    assert row.kind == "roofline" and row.median_ms == pytest.approx(2 / 3350)
    assert row.rate == pytest.approx(3.35e12) and row.unit == "B/s"


def test_attentions_bound_counts_the_pairs_that_are_seen_alone():
    """8 heads of 128; a quarter of the causal pairs in documents of 2048 tokens, 2 products forward, 5 backward."""
    flops = {one.name: one.cost.flops for one in ours.operations()}
    assert flops["attention"] == 2 * 2 * 8 * (8192 * 8193 // 2) * 128
    assert flops["attention in documents"] == 2 * 2 * 8 * 4 * (2048 * 2049 // 2) * 128
    assert flops["attention_backward_ in documents"] == 2.5 * flops["attention in documents"]
    assert 2 * flops["attention with small heads"] == flops["attention"]


def test_no_operation_is_named_as_a_peers_is():
    """The gate takes what is called "NAME of PEER" for another maker's kernel of the operation NAME."""
    assert not [one.name for one in ours.operations() if " of " in one.name]


def test_measured_rows_have_quantiles_rate_and_share_of_what_the_device_reached(monkeypatch):
    monkeypatch.setattr(timing, "liger", dict)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    calls = []

    def bench(call):
        calls.append(call())
        return 2.0, 1.5, 3.0

    rows = list(timing.measured_rows([OPERATION], Memory(filled=True), bench, Device(1e6, 1e9), "a clock"))
    assert [row.by for row in rows] == ["ours", "torch", "torch.compile"]
    assert {row.kind for row in rows} == {"measured"}
    for row in rows:
        assert (row.median_ms, row.low_ms, row.high_ms) == (2.0, 1.5, 3.0)
        assert row.rate == pytest.approx(1000 / 2e-3) and row.share == pytest.approx(0.5)
    for y, scale in calls[1:]:
        assert y.shape == (4, 64) and scale.shape == (4,)


def test_what_raises_gives_a_row_that_says_so_and_the_others_are_measured():
    def raises(*_):
        raise RuntimeError("planted")

    broken = replace(OPERATION, name="broken", call=raises)
    rows = timing.measured_rows([broken, OPERATION], Memory(filled=True), lambda call: (call(), 1.0)[1:] * 3,
                                Device(1e6, 1e9), "a clock", ("ours", "torch"))  # fmt: skip
    assert [(row.kind, row.operation, row.by, row.error) for row in rows] == [
        ("failed", "broken", "ours", "RuntimeError: planted"),
        ("measured", "broken", "torch", ""),
        ("measured", "rms_norm", "ours", ""),
        ("measured", "rms_norm", "torch", ""),
    ]


def test_without_compile_nothing_is_compiled(monkeypatch):
    def refuses(function):
        raise AssertionError("torch.compile was called")

    monkeypatch.setattr(torch, "compile", refuses)
    assert list(timing.implementations(OPERATION, ("ours", "torch", "liger")))[:2] == ["ours", "torch"]


def test_a_row_is_in_the_file_before_the_next_is_made(tmp_path):
    path = tmp_path / "rows.csv"

    def coming():
        yield Row("measured", "first", "ours", "GPU", 2.0)
        assert [row["operation"] for row in csv.DictReader(path.open())] == ["first"]
        raise KeyboardInterrupt  # as when the time limit ends it

    with pytest.raises(KeyboardInterrupt):
        list(written(coming(), path))
    assert [row["median_ms"] for row in csv.DictReader(path.open())] == ["2.0"]


def test_a_failed_row_is_shown_and_is_the_commands_exit_code(tmp_path, capsys):
    rows = [Row("failed", "op", "ours", "GPU", error="RuntimeError: planted")]
    assert command.report(rows, "Measured.", tmp_path) == 1
    assert "RuntimeError: planted" in capsys.readouterr().out
    assert [row["error"] for row in csv.DictReader((tmp_path / "kernels.csv").open())] == ["RuntimeError: planted"]


def test_only_takes_the_named_operations_and_no_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    facts = {"sm_90": {"swiglu": FACTS, "attention_backward_: dq_kernel": FACTS, "rms_norm": FACTS}}
    monkeypatch.setattr(gate, "all_facts", lambda modules: facts)
    assert command.main(["--output", str(tmp_path), "--only", "swiglu", "--only", "attention_backward_"]) == 0
    found = [row["operation"] for row in csv.DictReader((tmp_path / "kernels.csv").open())]
    assert found == ["swiglu", "attention_backward_", "swiglu", "attention_backward_: dq_kernel"]
    with pytest.raises(SystemExit):
        command.main(["--only", "swigloo"])
    assert "--only swigloo: known are rms_norm, " in capsys.readouterr().err


def test_ceilings_are_twice_a_copys_bytes_and_a_products_flops_over_their_times():
    reached = timing.ceilings(lambda call: (call(), 0.5)[1:] * 3, Memory(filled=True), size=1000, edge=16)
    assert reached == Device(2 * 2000 / 0.5e-3, 2 * 16**3 / 0.5e-3)


def test_one_csv_holds_rows_of_every_kind_and_what_does_not_apply_is_empty(tmp_path):
    rows = [Row("measured", "op", "ours", "GPU", 2.0, 1.0, 3.0), Row("compiled", "op", "ours", "sm_90", registers=40)]
    assert list(written(rows, tmp_path / "rows.csv")) == rows
    with (tmp_path / "rows.csv").open() as file:
        measured, compiled = csv.DictReader(file)
    assert measured["median_ms"] == "2.0" and measured["registers"] == ""
    assert compiled["registers"] == "40" and compiled["median_ms"] == ""


def test_printed_columns_are_those_that_are_used():
    text = printed([Row("roofline", "op", "bound", "a device", 0.12345)])
    assert text.splitlines() == [
        "kind      operation  by     device    median_ms",
        "roofline  op         bound  a device  0.1235",
    ]


@pytest.mark.parametrize("kind", ["measured", "roofline"])
def test_a_picture_says_whether_its_times_were_measured(tmp_path, kind):
    rows = [Row(kind, "op", by, "a device", 2.0, 1.0, 3.0) for by in ("ours", "torch")]
    plot.draw(rows, tmp_path / "times.svg")
    text = (tmp_path / "times.svg").read_text()
    assert ("not measured" in text) == (kind == "roofline")
    assert ("Measured on a device" in text) == (kind == "measured")


def test_without_a_gpu_the_command_says_that_nothing_was_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gate, "all_facts", lambda modules: {"sm_90": {"rms_norm": FACTS}})
    assert command.main(["--output", str(tmp_path), "--device", "MI300X"]) == 0
    assert "NOT MEASURED" in capsys.readouterr().out
    with (tmp_path / "kernels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} == {"roofline", "compiled"}
    assert {row["operation"] for row in rows if row["kind"] == "roofline"} == {op.name for op in ours.operations()}
    assert all(row["device"] == "MI300X" for row in rows if row["kind"] == "roofline")
