"""What a run says about itself, step by step: metrics.jsonl, TensorBoard, and one progress line."""

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, TextIO

from tqdm import tqdm

from megatron_lite.errors import DataError

LOG_INTERVAL = 10.0  # seconds between plain progress lines
LONGEST_LINE = 1 << 20  # bytes of a step's numbers, benchmarks among them


@dataclass(frozen=True)
class StepMetrics:
    """One line of metrics.jsonl. Where a field is None, `mfu` is written as null and the others are left out."""

    step: int  # counted from 1
    tokens: int  # read so far in the whole run
    loss: float  # mean over the global batch's counted tokens, in nats
    grad_norm: float  # before clipping
    lr: float
    seconds: float  # of this step
    data_seconds: float  # of these the first rank waited for its samples
    tokens_per_second: float  # over all ranks
    mfu: float | None
    memory_bytes: int  # on the fullest rank
    memory_kind: str
    memory_reserved_bytes: int | None = None  # by an accelerator's allocator at its peak, on the fullest rank
    memory_free_bytes: int | None = None  # on the accelerator with the least left, all processes counted
    z_loss: float | None = None
    valid_loss: float | None = None
    named: Mapping[str, float] = field(default_factory=dict)  # further ones, such as valid_loss/NAME of each set

    def to_json(self) -> str:
        """The line, with every digit of every float (json writes floats by repr)."""
        return json.dumps({name: value for name, value in self.fields().items() if value is not None or name == "mfu"})

    def fields(self) -> dict[str, Any]:
        """Names and values as they are written."""
        fields = asdict(self)
        return fields | fields.pop("named")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without a last line that a killed process left unfinished.

    Raises DataError for a broken line anywhere else.
    """
    records = []
    for number, line in enumerate(_whole_lines(path), 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path} line {number}: not JSON: {error}") from None
    return records


def _whole_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    return [line + "\n" for line in lines[:-1]]


def rewind(path: Path, step: int) -> None:
    """Cut a metrics.jsonl, or another file of lines with a step, back to those up to `step`; a crash leaves either the
    old file or the new one.
    """
    if not path.exists():
        return
    kept = [line for line, one in zip(_whole_lines(path), read_metrics(path), strict=True) if one["step"] <= step]
    replacement = path.with_suffix(".jsonl.tmp")
    with replacement.open("w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    replacement.replace(path)


class MetricsWriter:
    """Writes a run's metrics from the one rank that has them; the files go on after `start_step`.

    A context manager. `write` flushes, so that metrics.jsonl is complete after every step.
    """

    def __init__(self, run_dir: Path, *, start_step: int, total_steps: int) -> None:
        # Imported here because it takes a second, which the other ranks need not spend.
        from torch.utils.tensorboard import SummaryWriter

        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir / "metrics.jsonl"
        rewind(self.path, start_step)
        self._file: TextIO = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start_step + 1)
        self._progress = ProgressBar(start_step=start_step, total_steps=total_steps)

    def write(self, metrics: StepMetrics) -> None:
        self._file.write(metrics.to_json() + "\n")
        self._file.flush()
        for name, value in metrics.fields().items():
            if isinstance(value, int | float) and name != "step":
                self._board.add_scalar(name, value, metrics.step)
        self._progress.show(metrics)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Further numbers of the step that was written last, at the end of its line. Raises ValueError for another."""
        if not numbers:
            return
        if self.last().get("step") != step:
            raise ValueError(f"step {step} is not the last in {self.path}")
        with self.path.open("r+b") as file:  # in one piece: a crash leaves the line without them, or with all
            file.seek(-len("}\n"), os.SEEK_END)
            file.write(f", {json.dumps(dict(numbers))[1:]}\n".encode())
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def last(self) -> dict[str, Any]:
        """The last line; empty where there is none."""
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - LONGEST_LINE))
            lines = file.read().splitlines()
        return json.loads(lines[-1]) if lines else {}

    def close(self) -> None:
        self._file.close()
        self._board.close()
        self._progress.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class ProgressBar:
    """One line on stderr: a bar that redraws itself on a terminal, a plain line now and then in a log."""

    def __init__(self, *, start_step: int, total_steps: int) -> None:
        self._total = total_steps
        self._last_line = float("-inf")
        on_terminal = sys.stderr.isatty()
        self._bar = (
            tqdm(initial=start_step, total=total_steps, unit="step", dynamic_ncols=True) if on_terminal else None
        )

    def show(self, metrics: StepMetrics) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(_describe(metrics), refresh=False)
            self._bar.update()
            return
        now = time.monotonic()
        worth_a_line = metrics.valid_loss is not None or metrics.step == self._total
        if worth_a_line or now - self._last_line >= LOG_INTERVAL:
            self._last_line = now
            print(f"step {metrics.step}/{self._total}  {_describe(metrics)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _describe(metrics: StepMetrics) -> str:
    parts = [f"loss {metrics.loss:.4f}"]
    if metrics.valid_loss is not None:
        parts.append(f"valid {metrics.valid_loss:.4f}")
    parts += [
        f"grad norm {metrics.grad_norm:.3f}",
        f"lr {metrics.lr:.2e}",
        f"{metrics.tokens_per_second:,.0f} tokens/s",
    ]
    if metrics.mfu is not None:
        parts.append(f"MFU {metrics.mfu:.1%}")
    return "  ".join([*parts, f"{metrics.memory_bytes / 2**30:.2f} GiB"])
