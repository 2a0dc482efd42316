"""Write report.html for a run again, for example after adding sample.txt or unigram.json to its directory.

python tools/write_report.py RUN_DIR
"""

import argparse
from pathlib import Path

from megatron_lite.errors import run_command
from megatron_lite.training.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    print(write_report(parser.parse_args().run_dir))


if __name__ == "__main__":
    run_command(main)
