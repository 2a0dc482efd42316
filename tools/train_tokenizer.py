"""Train a SentencePiece BPE tokenizer on a sample of JSONL text; writes {model-prefix}.model.

Every valid text comes back from its tokens as it was. </s> ends a document, <pad> fills; kept as well, and never found
in text: <|system|>, <|user|>, <|assistant|>, <|tool|>, <|end|>, <|fim_prefix|>, <|fim_middle|>, <|fim_suffix|>,
<|fim_pad|> and <|reserved_0|> to <|reserved_50|>.
"""

import argparse

from megatron_lite.data.tokenizer_training import Sampling, train_tokenizer
from megatron_lite.errors import run_face


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, metavar="F.jsonl[.gz|.zst]", help="files of JSON lines")
    parser.add_argument("--model-prefix", required=True, metavar="P", help="path without .model")
    parser.add_argument("--vocab-size", type=int, required=True, metavar="N", help="pieces, special ones included")
    parser.add_argument("--json-key", default="text", metavar="KEY", help="key that holds the text (text)")
    parser.add_argument(
        "--sample-bytes", type=int, default=Sampling.sample_bytes, metavar="N", help="text to learn from (100000000)"
    )
    parser.add_argument("--seed", type=int, default=Sampling.seed, help="of the sample (1234)")
    parser.add_argument(
        "--on-error",
        choices=["fail", "skip"],
        default="fail",
        help="a malformed line ends the run with exit code 3 (fail), or is counted and left out (skip)",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    sampling = Sampling(
        json_key=arguments.json_key,
        sample_bytes=arguments.sample_bytes,
        seed=arguments.seed,
        skip_malformed=arguments.on_error == "skip",
    )
    for line in train_tokenizer(arguments.input, arguments.model_prefix, arguments.vocab_size, sampling).lines():
        print(line)


if __name__ == "__main__":
    run_face(main)
