"""Everything that only a GPU can tell about the package, in one command of under ten minutes; docs/gpu_day.md.

    python tools/gpu_day.py --out runs/gpu_day               one GPU
    python tools/gpu_day.py --out runs/gpu_day --ranks 2     the first five minutes on two, with NCCL between them
    python tools/gpu_day.py --out runs/toy --toy             the same on a CPU with toy sizes, to try the command itself
    python tools/gpu_day.py --out runs/gpu_day --draw        the page again, from the findings that are there

Runs from a source tree: no install, no C++, no network. Every section is a process with a limit of its own; every
finding is a line of DIR/results.jsonl at once, and DIR/page.html shows them. Exit code 1 if any finding failed.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from gpu.day import Day, command_for, prepare_environment, run_sections  # noqa: E402
from gpu.findings import FILE, Findings, read  # noqa: E402
from gpu.judge import is_toy, judge  # noqa: E402
from gpu.page import write_page  # noqa: E402
from gpu.plan import LIMITS, PATIENCE_WITH_TOYS, PLANS  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_day"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--sections", metavar="A,B", help="these alone, in the plan's order")
    parser.add_argument("--toy", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--ranks", type=int, choices=PLANS, default=1, help="GPUs; default: 1")
    parser.add_argument(
        "--limit", type=float, metavar="SECONDS", help="for all sections; default: 570, on two GPUs 300"
    )
    parser.add_argument("--draw", action="store_true", help="only draw DIR/page.html again")
    options = parser.parse_args()
    known = [section.name for section in PLANS[options.ranks]]
    wanted = options.sections.split(",") if options.sections else known
    if strange := [name for name in wanted if name not in known]:
        parser.error(f"--sections {','.join(strange)}: with --ranks {options.ranks} there are {', '.join(known)}")
    if options.draw and not (options.out / FILE).is_file():
        parser.error(f"--draw: there is no {options.out / FILE}")
    options.chosen = [section for section in PLANS[options.ranks] if section.name in wanted]
    return options


def measure(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / FILE).unlink(missing_ok=True)
    day = Day(options.out.resolve(), options.toy)
    patience = PATIENCE_WITH_TOYS if options.toy else 1
    limit = options.limit or patience * LIMITS[options.ranks]
    sections = [replace(section, seconds=patience * section.seconds) for section in options.chosen]
    prepare_environment(ROOT, options.toy)
    Findings(day.folder, "day").say("start", toy=options.toy, ranks=options.ranks, limit_s=limit)
    run_sections(sections, lambda section: command_for(day, section.name), day.folder, limit)


def main() -> int:
    options = parse_arguments()
    if not options.draw:
        measure(options)
    findings = read(options.out)
    path = write_page(options.out, findings)
    verdicts = [(finding, judge(finding, is_toy(findings))) for finding in findings]
    failed = [(finding, verdict) for finding, verdict in verdicts if verdict.word == "fail"]
    for finding, verdict in failed:
        print(f"FAIL {finding['section']}: {finding['what']}: {'; '.join(verdict.reasons)}")
    print(f"{len(findings)} findings, {len(failed)} failed: {path}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
