"""One section, in this process: python -m gpu SECTION --out DIR [--toy]."""

import argparse
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

from gpu.day import Day
from gpu.findings import Findings, describe


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gpu")
    parser.add_argument("section")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args()
    findings = Findings(options.out, options.section)
    try:
        import_module(f"gpu.sections.{options.section}").run(Day(options.out, options.toy), findings)
    except Exception as error:
        traceback.print_exc()
        findings.say("raised", error=describe(error))
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of a broken process group would keep the process
