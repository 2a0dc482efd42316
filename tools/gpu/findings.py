"""Findings: one JSON line each, on the disk before the next is looked for."""

import json
import os
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

FILE = "results.jsonl"

Finding = dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """Of one section, in the folder of the day. Several processes may write at once."""

    folder: Path
    section: str

    def say(self, what: str, **fields: Any) -> None:
        """Append a line: `what` names the table that the finding is a row of, `fields` are its columns."""
        finding = {"section": self.section, "what": what} | {key: plain(value) for key, value in fields.items()}
        line = json.dumps(finding) + "\n"
        # One write to a file that is only appended to: lines of several processes do not mix.
        descriptor = os.open(self.folder / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
        print(short(finding), flush=True)


def read(folder: Path) -> list[Finding]:
    return [json.loads(line) for line in (folder / FILE).read_text(encoding="utf-8").splitlines()]


def short(finding: Finding) -> str:
    """For the terminal."""
    section, what, *values = finding.values()
    named = zip(list(finding)[2:], values, strict=True)
    cells = [f"{key}={f'{value:.4g}' if isinstance(value, float) else value}" for key, value in named]
    return f"{section}: {what}: {' '.join(cells)}"


def plain(value: Any) -> Any:
    """As JSON has it: numbers and truth as they are, numbers that are none and everything else in words."""
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    return str(value).removeprefix("torch.")


def describe(error: BaseException) -> str:
    """An exception in a line."""
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text[:400]}"
