"""Binarize JSONL: every line's text becomes one document of an indexed data set in Megatron's format.

Writes {output-prefix}_{key}_document.bin, .idx and .json, the last with the tokenizer's checksum. The files appear when
they are whole. The same input gives the same bytes from any number of workers.
"""

import argparse

from megatron_lite.data.preprocess import Settings, preprocess
from megatron_lite.errors import run_face


def positive(text: str) -> int:
    """A whole number above 0, as argparse wants it."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="F.jsonl[.gz|.zst]", help="files, read in this order"
    )
    parser.add_argument("--output-prefix", required=True, metavar="P", help="path without the ending")
    parser.add_argument("--tokenizer-model", required=True, metavar="T", help="a SentencePiece .model file")
    parser.add_argument("--json-keys", nargs="+", default=["text"], metavar="KEY", help="keys that hold text (text)")
    parser.add_argument("--append-eod", action="store_true", help="end every document that is not empty with </s>")
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes that tokenize (1)")
    parser.add_argument(
        "--on-error",
        choices=["fail", "skip"],
        default="fail",
        help="a malformed line ends the run with exit code 3 (fail), or is counted and left out (skip)",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    settings = Settings(arguments.tokenizer_model, tuple(arguments.json_keys), arguments.append_eod)
    report = preprocess(
        arguments.input,
        arguments.output_prefix,
        settings,
        workers=arguments.workers,
        skip_malformed=arguments.on_error == "skip",
    )
    for line in report.lines():
        print(line)


if __name__ == "__main__":
    run_face(main)
