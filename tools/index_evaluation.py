"""Write the table of n-grams of evaluation sets that the rule `decontamination` holds documents against.

    python tools/index_evaluation.py --output evaluation.ngrams --tasks battery
    python tools/index_evaluation.py --output evaluation.ngrams arc=arc/*.jsonl gsm8k=gsm8k.jsonl

`--tasks` takes benchmarks and groups by the names that `python -m megatron_lite.evaluate` knows, and indexes the very
documents that it asks (MMLU's subjects are one set); what is not here is named. Any other set is a name and its files:
JSONL (an item is a record, all strings in it together) or plain text (an item a line). Then in the configuration of a
curation: `decontamination: {table: evaluation.ngrams}`.
"""

import argparse
import glob
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from megatron_lite.config.complaints import suggest
from megatron_lite.curation.rules.evaluation_ngrams import LEAST_WORDS, MOST_ITEMS, WORDS, build_table
from megatron_lite.errors import UsageError, run_command
from megatron_lite.evaluation.battery import BATTERY, BY_TASK, GROUPS, MMLU_TASKS, expand
from megatron_lite.evaluation.documents import evaluated_split, find_splits, lack, read_documents, text_of


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="NAME=FILES", help="a set; FILES may be a glob, a name come again")
    parser.add_argument("--tasks", default="", metavar="A,B", help="benchmarks or groups, such as battery")
    parser.add_argument("--include-path", type=Path, metavar="DIR", help="where DIR/TASK/SPLIT.jsonl comes first")
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


def write_benchmarks(names: Sequence[str], include: Path | None, folder: Path) -> dict[str, list[str]]:
    """Write the documents of benchmarks as JSONL into `folder`; files by set. Says on stderr what is not here.

    Raises UsageError for a name that the battery does not know, for one that is asked for itself and is not here, and
    where nothing is here.
    """
    if include is not None and not include.is_dir():
        raise UsageError(f"--include-path {include}: must be a folder with documents")
    files: dict[str, list[str]] = {}
    missing: dict[str, str] = {}
    for task in dict.fromkeys(part for name in expand(names) for part in (MMLU_TASKS if name == "mmlu" else (name,))):
        if task not in BY_TASK:
            raise UsageError(
                f"--tasks {task}: no benchmark of the battery{suggest(task, [*BY_TASK, *GROUPS, BATTERY])}"
            )
        benchmark, name = BY_TASK[task], "mmlu" if task in MMLU_TASKS else task
        splits = find_splits(benchmark, include)
        if reason := lack(benchmark, splits):
            missing.setdefault(name, reason)
            continue
        path = folder / f"{task}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for document in read_documents(splits[evaluated_split(benchmark, splits)]):
                file.write(json.dumps(list(text_of(document))) + "\n")
        files.setdefault(name, []).append(str(path))
    for name, reason in missing.items():
        if name in names or not files:
            raise UsageError(f"--tasks {name}: {reason}")
        print(f"{name}: missing: {reason}", file=sys.stderr)
    return files


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_arguments(argv)
    if options.most_items < 1:
        raise UsageError(f"--most-items {options.most_items}: must be at least 1")
    names = [name for name in options.tasks.split(",") if name]
    if not options.sets and not names:
        raise UsageError("nothing to index: give --tasks, or sets as NAME=FILES")
    files = files_of(options.sets)
    with tempfile.TemporaryDirectory() as folder:
        for name, paths in write_benchmarks(names, options.include_path, Path(folder)).items():
            files.setdefault(name, []).extend(paths)
        built = build_table(files, options.output, options.words, options.most_items)
    print(f"{'set':<24}{'items':>10}{f'under {LEAST_WORDS} words':>16}{'n-grams':>12}{'common ones':>13}")
    for name, counts in built.items():
        print(f"{name:<24}{counts.items:>10,}{counts.too_short:>16,}{counts.ngrams:>12,}{counts.common:>13,}")


if __name__ == "__main__":
    run_command(main)
