"""Binarize JSONL or Parquet: every text becomes one document of an indexed data set in Megatron's format.

Writes {output-prefix}_{key}_document.bin, .idx and .json (the tokenizer's checksum and special tokens, sizes and
checksums), or _sentence instead of _document where texts are split. The files appear when they are whole. Killed at any
moment and started again, the run goes on where it was; the same input gives the same bytes from any number of workers.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from megatron_lite.data.encode import Settings
from megatron_lite.data.preprocess import preprocess
from megatron_lite.errors import run_command

TOKENIZER = (
    "a SentencePiece .model file, a tokenizer.json, or a directory with one: a step_N, a run (of its newest "
    "checkpoint), a Hugging Face model"
)


def positive(text: str) -> int:
    """A whole number above 0, as argparse wants it."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="F.jsonl[.gz|.zst]|F.parquet", help="read in this order"
    )
    parser.add_argument("--output-prefix", required=True, metavar="P", help="path without the ending")
    parser.add_argument("--tokenizer-model", required=True, metavar="T", help=TOKENIZER)
    parser.add_argument("--json-keys", nargs="+", default=["text"], metavar="KEY", help="keys (columns) of text (text)")
    parser.add_argument(
        "--append-eod",
        action="store_true",
        help="put the tokenizer's end of a document behind every one that is not empty",
    )
    parser.add_argument(
        "--split-sentences", action="store_true", help="a sequence is a sentence (by Punkt, English), not a document"
    )
    parser.add_argument(
        "--keep-newlines",
        action="store_true",
        help="sentences keep the white space behind them, so that together they are the text",
    )
    parser.add_argument(
        "--encoder",
        choices=["auto", "sentencepiece"],
        default="auto",
        help="of a SentencePiece model; auto: our own, if it gives SentencePiece's ids on a sample and on odd texts "
        "(auto)",
    )
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes that tokenize (1)")
    parser.add_argument(
        "--on-error",
        choices=["fail", "skip"],
        default="fail",
        help="a malformed record ends the run with exit code 3 (fail), or is counted and left out (skip)",
    )
    arguments = parser.parse_args()
    if arguments.keep_newlines and not arguments.split_sentences:
        parser.error("--keep-newlines goes with --split-sentences")
    return arguments


def tokenizer_path(given: str) -> str:
    """Of a run the checkpoint that carries its tokenizer."""
    if not Path(given).is_dir():
        return given
    from megatron_lite.checkpoint.directory import tokenizer_directory  # which brings torch

    return str(tokenizer_directory(Path(given)))


def settings_of(arguments: argparse.Namespace) -> Settings:
    sentences = ("whole" if arguments.keep_newlines else "bare") if arguments.split_sentences else None
    return Settings(
        tokenizer_path(arguments.tokenizer_model),
        tuple(arguments.json_keys),
        arguments.append_eod,
        sentences,
        fast=arguments.encoder == "auto",
    )


def main() -> None:
    arguments = parse_arguments()
    report = preprocess(
        arguments.input,
        arguments.output_prefix,
        settings_of(arguments),
        workers=arguments.workers,
        skip_malformed=arguments.on_error == "skip",
        say=partial(print, file=sys.stderr),
    )
    for line in report.lines():
        print(line)


if __name__ == "__main__":
    run_command(main)
