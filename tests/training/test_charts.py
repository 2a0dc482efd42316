"""Charts put numbers where they belong."""

import re
from xml.etree import ElementTree

import pytest

from megatron_lite.training.charts import MAX_POINTS, Level, Series, format_number, line_chart, thin, ticks

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0.0, 10.0, 5, [0, 2, 4, 6, 8, 10]),
        (3.9, 8.4, 5, [3, 4, 5, 6, 7, 8, 9]),
        (0.0, 3e-4, 3, [0, 1e-4, 2e-4, 3e-4]),
        (-5.0, 5.0, 2, [-5, 0, 5]),
        (100.0, 100.4, 4, [100, 100.1, 100.2, 100.3, 100.4]),
    ],
)
def test_ticks_are_round_and_enclose_the_range(low: float, high: float, count: int, expected: list[float]) -> None:
    assert ticks(low, high, count) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (5000, "5,000"), (10_000, "10k"), (1.5e12, "1.5T"), (0.003, "0.003"), (3e-5, "3e-05"), (4.25, "4.25")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text


def test_a_line_runs_linearly_between_the_corners_of_its_plane() -> None:
    chart = line_chart("t", [Series("a", [(0, 0.0), (5, 5.0), (10, 10.0)], "train")], size=(760, 300))
    path = next(p.get("d") for p in ElementTree.fromstring(chart).iter(f"{SVG}path") if p.get("class") == "line-train")
    points = [tuple(map(float, point.split())) for point in path[1:].split("L")]
    assert points == [(56, 254), (398, 144), (740, 34)]


def test_the_level_lies_within_the_plane_and_carries_its_value() -> None:
    chart = line_chart("t", [Series("a", [(0, 1.0), (1, 2.0)], "train")], level=Level("bar", 9.0))
    y = float(re.search(r'class="level" d="M56 ([\d.]+)H', chart).group(1))
    assert 34 <= y < 60
    assert "bar 9.000" in chart


def test_a_constant_and_a_single_point_are_drawn() -> None:
    for points in ([(3, 2.0)], [(3, 0.0), (4, 0.0)]):
        ElementTree.fromstring(line_chart("t", [Series("a", points, "train")]))
    assert "<circle" in line_chart("t", [Series("a", [(3, 2.0)], "train")])


def test_names_are_escaped() -> None:
    chart = line_chart("<t>", [Series("<a>", [(0, 1.0), (1, 2.0)], "train", dots=True)])
    assert "<a>" not in chart
    ElementTree.fromstring(chart)


def test_a_long_series_becomes_means_and_keeps_its_end() -> None:
    points = [(float(x), float(x % 2)) for x in range(10_000)]
    thinned = thin(points)
    assert len(thinned) <= MAX_POINTS
    assert thinned[-1] == points[-1]
    assert all(abs(y - 0.5) < 0.1 for _, y in thinned[:-1])
    assert thin(points[:MAX_POINTS]) == points[:MAX_POINTS]


def test_keys_that_do_not_fit_in_a_line_stand_in_several_and_the_plane_below_them() -> None:
    names = ["chat", "code", "a-set-with-a-name-that-is-longer-than-the-chart-is-wide", "more"]
    series = [Series(name, [(0, 1.0), (1, 2.0)], "train") for name in names]
    root = ElementTree.fromstring(line_chart("t", series, size=(340, 230)))
    keys = [(float(e.get("x")), float(e.get("y")), e.text) for e in root.iter(f"{SVG}text") if e.get("class") == "key"]
    assert [y for _, y, _ in keys] == [16, 16, 34, 52]
    assert keys[2][2].startswith("…") and names[2].endswith(keys[2][2][1:])
    assert all(x + 8 * len(text) <= 340 for x, _, text in keys)
    top = min(float(e.get("d").split()[1].split("H")[0]) for e in root.iter(f"{SVG}path") if e.get("class") == "grid")
    assert top > 52
