"""Runs the sections of a day, each in a process of its own with its own limit, until the day's seconds are spent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu.findings import Findings
from gpu.plan import Section

LEAST = 10.0  # seconds under which a section is not begun


@dataclass(frozen=True)
class Day:
    """What a section is told: where to write, whether it is a toy on the CPU."""

    folder: Path
    toy: bool


def run_sections(sections: Sequence[Section], command_of: Callable[[Section], list[str]], folder: Path,
                 seconds: float) -> None:  # fmt: skip
    """One after the other; how each ended is a finding of its own."""
    begin = time.monotonic()
    for section in sections:
        left = seconds - (time.monotonic() - begin)
        findings = Findings(folder, section.name)
        if left < LEAST:
            findings.say("ended", skipped=f"{left:.0f} s of the day's {seconds:g} were left, less than {LEAST:g}")
            continue
        _run_one(command_of(section), min(section.seconds, left), findings)


def _run_one(command: list[str], limit: float, findings: Findings) -> None:
    start = time.monotonic()
    # A session of its own, so that what the section started ends with it.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(limit)
        died = _cause(code)
    except subprocess.TimeoutExpired:
        died = f"over its limit of {limit:.0f} s"
    finally:
        _end_session(process)
    findings.say("ended", seconds=round(time.monotonic() - start, 2), **({"died": died} if died else {}))


def _cause(code: int) -> str | None:
    if code == 0:
        return None
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _end_session(process: subprocess.Popen) -> None:
    """Kill whatever of the section is left, its children too."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # all of it had ended
    finally:
        process.wait()


def command_for(day: Day, section: str) -> list[str]:
    """How a section's process is started; `environment` is what it needs beside that."""
    return [sys.executable, "-m", "gpu", section, "--out", str(day.folder), *(["--toy"] if day.toy else [])]


def prepare_environment(root: Path, toy: bool) -> None:
    """Of this process, for those it starts: where the packages lie; for toys no GPU, one thread, Triton interpreted."""
    paths = [root, root / "tools", root / "tests", *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(str(path) for path in paths if str(path))
    if toy:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    else:
        os.environ.pop("TRITON_INTERPRET", None)
        os.environ.setdefault("OMP_NUM_THREADS", "4")  # of several processes that compute references at once
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # products repeat
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
