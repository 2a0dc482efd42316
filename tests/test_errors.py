"""Exit codes, as a shell sees them."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(("name", "code"), [("UsageError", 2), ("DataError", 3), ("MegatronLiteError", 1)])
def test_a_known_error_is_one_line_on_stderr_and_its_exit_code(name: str, code: int) -> None:
    program = f"from megatron_lite.errors import *\ndef main(): raise {name}('x = 1: must be 2')\nrun_command(main)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stderr, result.stdout) == (code, "error: x = 1: must be 2\n", "")


def test_an_unknown_error_keeps_its_traceback_and_exits_with_1() -> None:
    program = "from megatron_lite.errors import run_command\nrun_command(lambda: 1 / 0)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr
