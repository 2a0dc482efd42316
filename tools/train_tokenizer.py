"""Train a SentencePiece BPE tokenizer on a sample of text; writes {model-prefix}.model and {model-prefix}.report.json.

Every valid text comes back from its tokens byte for byte. </s> ends a document, <pad> fills; kept as well, and never
found in text: <|system|>, <|user|>, <|assistant|>, <|tool|>, <|end|>, <|fim_prefix|>, <|fim_middle|>, <|fim_suffix|>,
<|fim_pad|> and <|reserved_0|> to <|reserved_50|>.

The sample is drawn in one pass with memory for no more than itself. One document of fifty is held out; the table shows
how many bytes a token stands for in these, by source and, where documents have one, by language.
"""

import argparse

from megatron_lite.data.text_sample import Sampling
from megatron_lite.data.tokenizer_training import train_tokenizer
from megatron_lite.errors import run_command


def weight(text: str) -> tuple[str, float]:
    """NAME=WEIGHT, as argparse wants it."""
    name, separator, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not separator or not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not SOURCE=WEIGHT with a weight above 0")
    return name, number


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="F.jsonl[.gz|.zst]|F.parquet", help="files of documents"
    )
    parser.add_argument("--model-prefix", required=True, metavar="P", help="path without .model")
    parser.add_argument("--vocab-size", type=int, required=True, metavar="N", help="pieces, special ones included")
    parser.add_argument("--json-key", default="text", metavar="KEY", help="key that holds the text (text)")
    parser.add_argument(
        "--source-key",
        default="source",
        metavar="KEY",
        help="key that names the source (source); where it is missing, the file's name up to its first period does",
    )
    parser.add_argument(
        "--language-key", default="language", metavar="KEY", help="key that names the language (language)"
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        type=weight,
        default=[],
        metavar="SOURCE=W",
        help="share of each source in the sample (what it has of the text)",
    )
    parser.add_argument(
        "--sample-bytes", type=int, default=Sampling.sample_bytes, metavar="N", help="text to learn from (100000000)"
    )
    parser.add_argument("--seed", type=int, default=Sampling.seed, help="of the sample (1234)")
    parser.add_argument(
        "--on-error",
        choices=["fail", "skip"],
        default="fail",
        help="a malformed record ends the run with exit code 3 (fail), or is counted and left out (skip)",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    sampling = Sampling(
        json_key=arguments.json_key,
        source_key=arguments.source_key,
        language_key=arguments.language_key,
        sample_bytes=arguments.sample_bytes,
        seed=arguments.seed,
        weights=dict(arguments.weights),
        skip_malformed=arguments.on_error == "skip",
    )
    for line in train_tokenizer(arguments.input, arguments.model_prefix, arguments.vocab_size, sampling).lines():
        print(line)


if __name__ == "__main__":
    run_command(main)
