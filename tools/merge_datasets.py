"""Merge any number of data sets (.bin and .idx) into one, in the order given; equal to Megatron's merge byte for byte.

The output appears when it is whole. Data sets of different tokenizers or token types are refused, and one whose bytes
are not those that its sidecar (.json) was written for.
"""

import argparse

from megatron_lite.data.merge import find_prefixes, merge_datasets
from megatron_lite.errors import run_command


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PREFIX|DIR",
        help="paths without .bin and .idx, or a directory: all data sets in it, by name",
    )
    parser.add_argument("--output-prefix", required=True, metavar="P", help="path without the ending")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    prefixes = find_prefixes(arguments.input)
    merged = merge_datasets(prefixes, arguments.output_prefix)
    written = merged.written
    print(
        f"{len(prefixes)} data sets: {written.documents} documents, {written.sequences} sequences, "
        f"{written.tokens} tokens"
    )
    if merged.unknown:
        print(f"the tokenizer of {len(merged.unknown)} is not known, so neither is the whole's: {merged.unknown[0]}")


if __name__ == "__main__":
    run_command(main)
