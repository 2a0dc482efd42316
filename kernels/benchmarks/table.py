"""What the benchmarks find, as rows: of one CSV, of one printed table."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from megatron_lite.kernels.benchmarks.compiled import Facts


@dataclass(frozen=True)
class Row:
    """`kind` says what the row is, and so which of its cells are filled.

    measured  times on a GPU: the median and the 20% and 80% quantiles, what was reached and its share of the ceiling
              measured on that GPU, memory beyond the arguments
    roofline  no measurement: the time in which the device's published figures would allow it, as `median_ms`
    compiled  no time at all: facts of the machine code
    failed    no time either: what it raised, as `error`
    """

    kind: str
    operation: str
    by: str
    device: str
    median_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    rate: float | None = None
    unit: str = ""
    share: float | None = None
    peak_bytes: int | None = None
    registers: int | None = None
    spills: int | None = None
    shared: int | None = None
    occupancy: int | None = None
    instructions: int | None = None
    per_element: float | None = None
    error: str = ""


def compiled_row(name: str, target: str, facts: Facts) -> Row:
    known = asdict(facts)
    return Row("compiled", name, "ours", target, **{key: known[key] for key in FACTS})


FACTS = ("registers", "spills", "shared", "occupancy", "instructions", "per_element")
COLUMNS = [field.name for field in fields(Row)]


def written(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    """The same rows, each once it is in the file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow(asdict(row))
            file.flush()
            yield row


def printed(rows: Sequence[Row]) -> str:
    """Aligned columns, those without any cell left out."""
    cells = [[_cell(getattr(row, column)) for column in COLUMNS] for row in rows]
    used = [index for index in range(len(COLUMNS)) if any(line[index] for line in cells)]
    lines = [[COLUMNS[index] for index in used], *([line[index] for index in used] for line in cells)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cell(value) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
