"""Curate a corpus: read, filter, deduplicate, split, and account for everything.

python tools/curate_data.py CONFIG.yaml [key=value ...] [--print-config] [--verify]

What is finished is not done again: the same command goes on where a killed run was, and a changed configuration redoes
the stages it touches. The output folder's report.html says what became of everything.
"""

import os
import signal
import sys
from types import FrameType

from megatron_lite.config.load import command_line, print_config
from megatron_lite.curation.config import CurationConfig, load_curation
from megatron_lite.curation.engine import Engine, Pool, in_place, intact
from megatron_lite.curation.engine.ray_tasks import RayTasks
from megatron_lite.curation.pipeline import curate
from megatron_lite.curation.report import summary_lines, write_report
from megatron_lite.errors import MegatronLiteError, run_command


def make_engine(config: CurationConfig) -> Engine:
    return Pool(config.workers) if config.engine == "pool" else RayTasks(config.workers, config.ray_address)


def stop(signum: int, frame: FrameType | None) -> None:
    """Leave at once: a run may be cut off anywhere, and its workers end with it."""
    line = f"error: stopped by {signal.Signals(signum).name}; the same command goes on from there\n"
    os.write(sys.stderr.fileno(), line.encode())
    os._exit(MegatronLiteError.exit_code)


def main() -> None:
    keys = f"keys of the configuration (--print-config shows their values): {', '.join(CurationConfig.model_fields)}"
    parser = command_line(__doc__, keys, "workers=8")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read every finished file again, and make those anew that are not as they were written",
    )
    arguments = parser.parse_args()
    config = load_curation(arguments.config, arguments.overrides)
    if arguments.print_config:
        print_config(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    engine = make_engine(config)
    try:
        curation = curate(config, engine, intact if arguments.verify else in_place)
    finally:
        engine.close()
    print(write_report(curation))
    sys.stdout.writelines(f"{line}\n" for line in summary_lines(curation))


if __name__ == "__main__":
    run_command(main)
