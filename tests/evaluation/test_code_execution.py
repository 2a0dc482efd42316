"""Code that nobody has read is executed without harm: what it must not do fails, and the caller goes on."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from megatron_lite.errors import UsageError
from megatron_lite.evaluation import code_execution
from megatron_lite.evaluation.code_execution import Limits, Outcome, check_confinement, execute
from megatron_lite.evaluation.confined import ALLOWED, MACHINES, OPENS

QUICK = Limits(seconds=20.0)  # a program that ends by itself: only a machine under load takes long
SHORT = Limits(seconds=0.3)


def test_a_program_that_runs_to_its_end_has_passed() -> None:
    program = "import collections, hashlib, math, re\nprint('x')\nassert math.gcd(12, 18) == 6"
    assert execute(program, QUICK) == Outcome(True, "passed")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 + 1 == 3", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended with code 0"),
        ("import ctypes; ctypes.string_at(0)", f"ended with code {-signal.SIGSEGV}"),
        ("import os\nwhile True: os.fork()", "PermissionError"),
        ("import threading; threading.Thread(target=print).start()", "RuntimeError"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("import os; os.execv('/bin/true', ['true'])", "PermissionError"),
        ("open('here', 'w')", "PermissionError"),
        ("import os; os.mkdir('here')", "PermissionError"),
        ("import socket; socket.socket()", "PermissionError"),
        ("import os, signal; os.kill(os.getppid(), signal.SIGKILL)", "PermissionError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "PermissionError"),
        ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (9, 9))", "ValueError"),
        ("files = [open('/dev/null') for _ in range(100)]", "OSError"),
    ],
)
def test_a_program_that_breaks_the_rules_has_not_passed(program: str, reason: str) -> None:
    assert execute(program, QUICK) == Outcome(False, reason)


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "while True: print('x' * 10000)",
        "import os\nwhile True: [os.write(file, b'x' * 999) for file in (1, 2)]",
        "try:\n    while True: pass\nfinally:\n    while True: pass",
        "import signal\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
    ],
)
def test_a_program_without_end_is_out_of_time(program: str) -> None:
    began = time.monotonic()
    assert execute(program, SHORT) == Outcome(False, "out of time")
    assert time.monotonic() - began < SHORT.seconds + 5.0


def test_a_program_that_floods_the_way_to_its_verdict_waits_until_its_time_is_over() -> None:
    program = "import os\nfor file in range(3, 32):\n    try:\n        while True: os.write(file, b'x' * 999)\n"
    assert execute(program + "    except OSError: continue", SHORT) == Outcome(False, "out of time")


def test_a_program_that_says_another_verdict_has_not_passed() -> None:
    program = "import os\nfor file in range(3, 32):\n    try: os.write(file, b'passed')\n    except OSError: continue\n"
    assert not execute(program, QUICK).passed


def test_memory_without_end_is_refused() -> None:
    limits = Limits(seconds=20.0, memory=200 << 20)
    assert execute("held = []\nwhile True: held.append('x' * 10**6)", limits) == Outcome(False, "MemoryError")
    assert execute("held = bytearray(300 << 20)", limits) == Outcome(False, "MemoryError")
    assert execute("held = bytearray(50 << 20)", limits).passed


def test_no_file_outside_changes(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    for attempt in (
        f"open({str(kept)!r}, 'a').write('x')",
        f"open({str(kept)!r}, 'r+')",
        f"import os; os.open({str(kept)!r}, os.O_RDONLY | os.O_TRUNC)",
        f"import os; os.open({str(tmp_path / 'new')!r}, os.O_RDONLY | os.O_CREAT)",
        f"import os; os.unlink({str(kept)!r})",
        f"import os; os.rename({str(kept)!r}, {str(tmp_path / 'new')!r})",
        f"import os; os.truncate({str(kept)!r}, 0)",
        f"import os; os.chmod({str(kept)!r}, 0)",
        f"import os; os.symlink('/', {str(tmp_path / 'new')!r})",
    ):
        assert execute(attempt, QUICK) == Outcome(False, "PermissionError"), attempt
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text() == "as it was" and kept.stat().st_mode & 0o600


def test_nobody_is_reached_at_a_port_that_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        port = server.getsockname()[1]
        program = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1)"
        assert execute(program, QUICK) == Outcome(False, "PermissionError")
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_program_sees_neither_the_environment_nor_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "secret")
    assert execute("import os\nassert 'A_TOKEN' not in os.environ and os.listdir('.') == []", QUICK).passed
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    execute(f"import os\nos.write({writing}, b'x')", QUICK)
    os.close(writing)
    with open(reading, "rb") as file:
        assert file.read() == b""


def test_neither_processes_nor_open_files_stay_behind() -> None:
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    before = len(os.listdir("/proc/self/fd")), children.read_text()
    for program in ("x = 1", "while True: pass"):
        execute(program, SHORT)
    assert (len(os.listdir("/proc/self/fd")), children.read_text()) == before


def test_confinement_is_checked_before_code_is_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    check_confinement()
    monkeypatch.setattr(code_execution.platform, "machine", lambda: "riscv64")
    with pytest.raises(UsageError, match=r"on Linux on x86_64 or aarch64 alone, .*; this is linux on riscv64"):
        check_confinement()


@pytest.mark.parametrize("machine", MACHINES)
def test_no_call_is_allowed_that_starts_reaches_or_ends_anything(machine: str) -> None:
    """By the kernel's tables: socket, connect, clone, fork, execve, kill, ptrace, and io_uring, which opens sockets."""
    column = MACHINES[machine][0]
    hostile = ({41, 42, 56, 57, 58, 59, 62, 101, 200, 234}, {198, 203, 220, 221, 129, 117, 130, 131})[column]
    numbers = [numbers[column] for numbers in (*ALLOWED.values(), *(numbers for numbers, _ in OPENS.values()))]
    there = [number for number in numbers if number is not None]
    assert len(set(there)) == len(there)
    assert not set(there) & (hostile | {425, 426, 427, 434, 435, 437})
