"""The drawings show every action at its time and nothing else."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from megatron_lite.parallel.pipeline.drawing import FILL, chrome_trace, timeline_svg, timeline_text
from megatron_lite.parallel.pipeline.schedules import one_f_one_b, split_backward
from megatron_lite.parallel.pipeline.simulator import Costs, simulate

TOOL = Path(__file__).parents[3] / "tools" / "show_schedule.py"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def timeline():
    return simulate(split_backward(one_f_one_b(3, 1, 4), 1), Costs(2, 1, 1))


def blocks(svg):
    """(title, x, width, fill, number) of each block."""
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        number = group.find(f"{SVG}text")
        yield (
            group.find(f"{SVG}title").text,
            float(rect.get("x")),
            float(rect.get("width")),
            rect.get("fill"),
            None if number is None else number.text,
        )


def test_picture_has_one_numbered_block_of_its_colour_for_each_action(timeline):
    drawn = list(blocks(timeline_svg(timeline)))
    spans = [span for row in timeline.spans for span in row]
    assert [title for title, *_ in drawn] == [f"{s.action}: {s.start:g} to {s.end:g}" for s in spans]
    assert [fill for *_, fill, _ in drawn] == [FILL[s.action.kind] for s in spans]
    assert [number for *_, number in drawn] == [str(s.action.microbatch) for s in spans]


def test_blocks_stand_at_their_time_and_are_as_wide_as_it_takes(timeline):
    spans = [span for row in timeline.spans for span in row]
    drawn = list(blocks(timeline_svg(timeline)))
    edge = [(x - 0.75, x - 0.75 + width + 1.5) for _, x, width, *_ in drawn]  # a block is inset by 0.75 on each side
    left = min(start for start, _ in edge)
    scale = (max(end for _, end in edge) - left) / timeline.makespan
    for span, (start, end) in zip(spans, edge, strict=True):
        assert start == pytest.approx(left + span.start * scale, abs=0.05)
        assert end == pytest.approx(left + span.end * scale, abs=0.05)


def test_picture_of_a_long_schedule_stays_narrow_and_leaves_numbers_out():
    svg = timeline_svg(simulate(one_f_one_b(4, 1, 512), Costs()))
    assert float(ElementTree.fromstring(svg).get("width")) < 1800
    assert all(number is None for *_, number in blocks(svg))


def test_picture_refers_to_nothing_outside_itself(timeline):
    svg = timeline_svg(timeline).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not any(word in svg for word in ("http", "href", "url(", "<style", "<script", " id="))


def test_text_drawing_of_a_small_1f1b():
    assert timeline_text(simulate(one_f_one_b(2, 1, 2), Costs())).splitlines() == [
        "stage 0  F0 F1 ......B0--- ...B1--- ",
        "stage 1  ...F0 B0--- F1 B1--- ......",
    ]


def test_text_drawing_is_cut_at_its_width():
    lines = timeline_text(simulate(one_f_one_b(2, 1, 99), Costs()), columns=40).splitlines()
    assert all(len(line) == len("stage 0  ") + 40 and line.endswith("...") for line in lines)


def test_trace_has_one_thread_a_stage_and_one_complete_event_an_action(timeline):
    events = json.loads(json.dumps(chrome_trace(timeline, microseconds_per_unit=10)))["traceEvents"]
    complete = [(e["tid"], e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert complete == [
        (stage, str(span.action), span.start * 10, (span.end - span.start) * 10)
        for stage, row in enumerate(timeline.spans)
        for span in row
    ]
    assert [e["args"]["name"] for e in events if e["ph"] == "M"] == ["stage 0", "stage 1", "stage 2"]


def show(*arguments):
    command = [sys.executable, TOOL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_tool_prints_bubble_and_peak_and_writes_both_files(tmp_path):
    svg, trace = tmp_path / "t.svg", tmp_path / "t.json"
    done = show("--schedule", "1f1b", "--stages", 4, "--microbatches", 8, "--svg", svg, "--trace", trace)
    assert done.returncode == 0, done.stderr
    assert "bubble 37.5% of the work" in done.stdout
    assert "peak live activations by stage 4 3 2 1" in done.stdout
    assert ElementTree.parse(svg).getroot().tag == f"{SVG}svg"
    assert len(json.loads(trace.read_text())["traceEvents"]) == 4 + 4 * 16


@pytest.mark.parametrize(
    ("arguments", "line"),
    [(("--stages", 0), "stages is 0"), (("--split", -1), "delay is -1"), (("--forward", -1), "forward=-1")],
)
def test_tool_refuses_impossible_values_with_one_line_and_exit_2(arguments, line):
    done = show(*arguments)
    assert done.returncode == 2
    assert line in done.stderr and len(done.stderr.splitlines()) == 1
