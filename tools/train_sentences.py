"""Train the sentence splitter (Punkt) on the text of JSONL files; writes its parameters as one JSON file.

The abbreviations of English that technical prose lacks (Mr., Prof., Inc.) are added unless --no-abbreviations.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_lite.data.jsonl import MalformedLine, parse_texts, read_batches
from megatron_lite.data.sentences import ENGLISH_ABBREVIATIONS, train_parameters, write_parameters
from megatron_lite.errors import DataError, run_command


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, metavar="F.jsonl[.gz|.zst]", help="files of JSON lines")
    parser.add_argument("--output", type=Path, required=True, metavar="F.json")
    parser.add_argument("--json-key", default="text", metavar="KEY", help="key that holds the text (text)")
    parser.add_argument("--no-abbreviations", action="store_true", help="for a language other than English")
    return parser.parse_args()


def read_texts(paths: Sequence[str], key: str) -> Iterator[str]:
    """Raises DataError naming the file and the line of a malformed one."""
    for batch in read_batches(paths, 1 << 20):
        for number, line in enumerate(batch.lines, batch.first_line):
            try:
                yield from parse_texts(line, [key])
            except MalformedLine as error:
                raise DataError(f"{batch.path} line {number}: {error}") from None


def main() -> None:
    arguments = parse_arguments()
    abbreviations = () if arguments.no_abbreviations else ENGLISH_ABBREVIATIONS
    parameters = train_parameters(read_texts(arguments.input, arguments.json_key), abbreviations)
    write_parameters(parameters, arguments.output)
    print(
        f"{arguments.output}: {len(parameters.abbrev_types)} abbreviations, {len(parameters.collocations)} "
        f"collocations, {len(parameters.sent_starters)} sentence starters, {len(parameters.ortho_context)} words"
    )


if __name__ == "__main__":
    run_command(main)
