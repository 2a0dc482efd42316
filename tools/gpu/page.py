"""The day's findings as one page of HTML that opens without a network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import megatron_lite
from gpu.findings import FILE, Finding
from gpu.judge import Verdict, is_toy, judge
from gpu.plan import PLANS, Section

MANY = 12  # rows above which a table that passes is folded

Judged = tuple[Finding, Verdict]


@dataclass(frozen=True)
class Cell:
    """`part` of the column's largest value, drawn as a bar; None where the column has no bars."""

    text: str
    number: bool = False
    part: float | None = None


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[str]
    rows: list[tuple[Verdict, list[Cell]]]

    @property
    def folded(self) -> bool:
        return len(self.rows) > MANY and all(verdict.word == "pass" for verdict, _ in self.rows)


def write_page(folder: Path, findings: Sequence[Finding]) -> Path:
    path = folder / "page.html"
    path.write_text(draw(findings), encoding="utf-8")
    return path


def draw(findings: Sequence[Finding]) -> str:
    """Of a day that ended or was ended; sections that left no line are shown as not run."""
    start = next((one for one in findings if one["section"] == "day"), {})
    toy = is_toy(list(findings))
    judged = [(finding, judge(finding, toy)) for finding in findings if finding["section"] != "day"]
    sections = [section_of(section, judged) for section in PLANS[start.get("ranks", 1)]]
    loader = FileSystemLoader([Path(__file__).parent, *megatron_lite.__path__])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("day.html").render(
        name="A toy of the GPU day" if toy else "The GPU day",
        kind="GPU",
        summary=summary(judged),
        figures=figures(judged, sections),
        failed=[(f, v.reasons, identity(f)) for f, v in judged if v.word == "fail"],
        sections=sections,
        toy=toy,
        source=FILE,
    )


def summary(judged: Sequence[Judged]) -> list[str]:
    """What machine, as the section `facts` says."""
    machine = next((f for f, _ in judged if (f["section"], f["what"]) == ("facts", "machine")), {})
    words = [str(machine.get("gpu", "a machine that did not say what it is"))]
    return words + [f"{key} {machine[key]}" for key in ("torch", "triton", "cuda", "nccl", "python") if key in machine]


def figures(judged: Sequence[Judged], sections: Sequence[dict]) -> list[tuple[str, str, str]]:
    words = [verdict.word for _, verdict in judged]
    ran = [section for section in sections if section["ended"]]
    seconds = sum(section["ended"].get("seconds", 0) for section in ran)
    whole = [section for section in ran if not {"died", "skipped"} & section["ended"].keys()]
    return [
        (str(words.count("fail")), "findings failed", f"{words.count('pass')} passed"),
        (str(words.count("measured")), "findings without a bound", "what they decide stands by their section"),
        (f"{len(whole)} of {len(sections)}", "sections to their end", f"in {seconds:.0f} s"),
    ]


def section_of(section: Section, judged: Sequence[Judged]) -> dict[str, Any]:
    """What the page shows of one section."""
    mine = [(finding, verdict) for finding, verdict in judged if finding["section"] == section.name]
    ended = next((finding for finding, _ in mine if finding["what"] == "ended"), {})
    tables: dict[str, list[Judged]] = {}
    for finding, verdict in mine:
        if finding["what"] not in ("ended", "raised"):
            tables.setdefault(finding["what"], []).append((finding, verdict))
    words = [verdict.word for _, verdict in mine]
    return {
        "section": section,
        "ended": ended,
        "word": "not run" if not mine else "fail" if "fail" in words else "pass" if "pass" in words else "measured",
        "errors": [reason for f, v in mine if f["what"] in ("ended", "raised") for reason in v.reasons],
        "tables": [table_of(title, rows) for title, rows in tables.items()],
    }


def table_of(title: str, judged: Sequence[Judged]) -> Table:
    """Columns in the order in which findings have them, failed rows first."""
    columns = list(dict.fromkeys(key for finding, _ in judged for key in finding if key not in ("section", "what")))
    barred = [key for key in columns if is_barred(key) and len(judged) > 1]
    most = {key: _most(finding.get(key) for finding, _ in judged) for key in barred}
    ordered = sorted(judged, key=lambda one: one[1].word != "fail")
    rows = [(verdict, [cell(key, finding.get(key), most.get(key)) for key in columns]) for finding, verdict in ordered]
    return Table(title, [heading(key) for key in columns], rows)


def _most(values) -> float | None:
    return max((value for value in values if isinstance(value, int | float) and value > 0), default=None)


def cell(key: str, value: Any, most: float | None) -> Cell:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(words(value))
    part = None if most is None else max(value / most, 0.0)
    return Cell(written(key, value), True, part)


def words(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(words, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# How a number is written, by how its name ends: the first that fits.
PERCENT = ("share", "share_of_published", "host_of_device", "excess_of_plan", "hidden")
ENDINGS: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("bytes_per_second", lambda value: f"{value / 1e12:.3f} TB/s" if value >= 1e11 else f"{value / 1e9:.3g} GB/s"),
    ("bytes", lambda value: f"{value / 2**30:.2f} GiB" if abs(value) >= 2**29 else f"{value / 2**20:.2f} MiB"),
    ("slower", lambda value: f"{value:.3f} ×"),
    *((name, lambda value: f"{100 * value:.1f} %") for name in PERCENT),
)
UNITS = {"_ms": "ms", "_s": "s", "_tflops": "TFLOP/s"}


def written(key: str, value: float) -> str:
    for ending, form in ENDINGS:
        if key.endswith(ending):
            return form(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def heading(key: str) -> str:
    """`forward_tflops` as "forward, TFLOP/s"."""
    for ending, unit in UNITS.items():
        if key == ending[1:]:
            return unit
        if key.endswith(ending):
            return f"{key.removesuffix(ending).replace('_', ' ')}, {unit}"
    return key.replace("_", " ")


def is_barred(key: str) -> bool:
    """Rates and shares are what one compares at a glance."""
    return key.endswith(("tflops", "bytes_per_second")) or key == "share"


def identity(finding: Finding) -> str:
    """The words and whole numbers of a finding, which tell it from its neighbours."""
    left_out = ("section", "what", "error", "died", "skipped", "seconds")
    return ", ".join(
        f"{key.replace('_', ' ')} {value}"
        for key, value in finding.items()
        if key not in left_out and isinstance(value, str | int) and not isinstance(value, bool)
    )
