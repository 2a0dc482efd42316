"""Write the table of n-grams of evaluation sets that the rule `decontamination` holds documents against.

    python tools/index_evaluation.py --output evaluation.ngrams arc=arc/*.jsonl gsm8k=gsm8k.jsonl

Each set is a name and its files: JSONL (an item is a record, all strings in it together) or plain text (an item a
line). Then in the configuration of a curation: `decontamination: {table: evaluation.ngrams}`.
"""

import argparse
import glob
from collections.abc import Sequence
from pathlib import Path

from megatron_lite.curation.rules.evaluation_ngrams import LEAST_WORDS, MOST_ITEMS, WORDS, build_table
from megatron_lite.errors import UsageError, run_command


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="NAME=FILES", help="a set; FILES may be a glob, a name come again")
    parser.add_argument("--output", type=Path, required=True, metavar="F.ngrams")
    parser.add_argument(
        "--words", type=int, default=WORDS, metavar="N", help="words of an n-gram, 8 to 50 (%(default)s)"
    )
    parser.add_argument(
        "--most-items", type=int, default=MOST_ITEMS, metavar="N", help="items that may share an n-gram (%(default)s)"
    )
    return parser.parse_args(argv)


def files_of(sets: Sequence[str]) -> dict[str, list[str]]:
    """Files by set, those of a glob in order. Raises UsageError for a set without any."""
    files: dict[str, list[str]] = {}
    for text in sets:
        name, _, pattern = text.partition("=")
        found = sorted(glob.glob(pattern, recursive=True)) if pattern else []
        if not name or not found:
            raise UsageError(f"{text}: must be NAME=FILES with a file that is there")
        files.setdefault(name, []).extend(found)
    return files


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_arguments(argv)
    if options.most_items < 1:
        raise UsageError(f"--most-items {options.most_items}: must be at least 1")
    built = build_table(files_of(options.sets), options.output, options.words, options.most_items)
    print(f"{'set':<24}{'items':>10}{f'under {LEAST_WORDS} words':>16}{'n-grams':>12}{'common ones':>13}")
    for name, counts in built.items():
        print(f"{name:<24}{counts.items:>10,}{counts.too_short:>16,}{counts.ngrams:>12,}{counts.common:>13,}")


if __name__ == "__main__":
    run_command(main)
