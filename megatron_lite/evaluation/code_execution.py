"""Executes code that a model wrote: each program in a process of its own, confined (confined.py), under limits.

What is kept from a program: the network, other processes, every file for writing, and more time and memory than it was
given. What is not: it can read what its user can read, though it can tell nobody.
"""

import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from megatron_lite.errors import UsageError
from megatron_lite.evaluation.confined import MACHINES

CONFINED = Path(__file__).with_name("confined.py")
PIPE = 65536  # bytes that a pipe holds: a program that writes more into it waits until its time is over


@dataclass(frozen=True)
class Limits:
    """What one program may use: wall-clock seconds (as HumanEval's own), bytes of address space, open files."""

    seconds: float = 3.0
    memory: int = 1 << 30
    files: int = 32

    def resources(self) -> dict[str, int]:
        """Limits by the names of the module `resource`. A limit of processes would not bind root: the filter does."""
        return {
            "RLIMIT_AS": self.memory,
            "RLIMIT_NOFILE": self.files,
            "RLIMIT_CPU": int(self.seconds) + 1,
            "RLIMIT_FSIZE": 0,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True)
class Outcome:
    """`reason` is `passed`, what the program raised, `out of time`, or `ended with code N` (a signal's is negative)."""

    passed: bool
    reason: str


def execute(program: str, limits: Limits = Limits()) -> Outcome:
    """Run a program: passed where it ran to its end, without raising, within its limits."""
    secret = secrets.token_hex(16).encode()
    reading, writing = os.pipe()
    with open(reading, "rb") as verdicts, tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-B", str(CONFINED), str(writing), json.dumps(limits.resources())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(writing,),
            cwd=folder,
            env={"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"},  # the same answer twice; threads are not allowed
            start_new_session=True,
        )
        os.close(writing)
        try:
            process.communicate(secret + b"\n" + program.encode(errors="surrogatepass"), timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            return Outcome(False, "out of time")
        finally:
            process.kill()
            process.wait()
        verdict = os.read(verdicts.fileno(), PIPE)
    if verdict == secret:
        return Outcome(True, "passed")
    return Outcome(False, verdict[:100].decode(errors="replace") or f"ended with code {process.returncode}")


def check_confinement() -> None:
    """Raises UsageError where programs cannot be confined, or where confined ones cannot run."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise UsageError(
            f"--allow-code-execution: code is executed on Linux on {' or '.join(MACHINES)} alone, "
            f"where the kernel confines it; this is {sys.platform} on {platform.machine()}"
        )
    good = execute("import collections, math, typing\nassert math.isqrt(16) == 4", Limits(seconds=30.0))
    network = execute("import socket\nsocket.socket()", Limits(seconds=30.0))
    if not good.passed or network.reason != "PermissionError":
        raise UsageError(
            "--allow-code-execution: code cannot be confined here: the kernel must filter system calls; "
            f"a good program: {good.reason}, one that opens a socket: {network.reason}"
        )
