"""The peer of the binarizing comparison: Megatron's loop, written here anew, on megatron-core's own builder.

    python tools/benchmark/megatron_preprocess.py --input F.jsonl --output-prefix P --tokenizer-model T --workers N

A pool's imap takes the lines 32 at a time, each worker parses a line and tokenizes its text with SentencePiece, and the
parent hands every document to the builder. Prints one line of JSON: the seconds from the pool's start to the index, and
the processor seconds of all processes meanwhile.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time

import numpy as np
from peers import peer
from sentencepiece import SentencePieceProcessor

CHUNK_LINES = 32


class Encoder:
    """A worker's state, as a class attribute, since initializers of a pool return nothing."""

    processor: SentencePieceProcessor

    @classmethod
    def load(cls, model: str) -> None:
        cls.processor = SentencePieceProcessor(model_file=model)

    @classmethod
    def encode(cls, line: str) -> tuple[list[int], list[int], int]:
        """Ids of a line's document with the end behind them, the lengths of its sequences, the line's characters."""
        text = json.loads(line)["text"]
        ids = cls.processor.encode(text) if text else []
        if ids:
            ids.append(cls.processor.eos_id())
        return ids, [len(ids)] if ids else [], len(line)


def processor_seconds() -> float:
    """Of this process and of those children that have ended."""
    return sum(os.times()[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--input", "--output-prefix", "--tokenizer-model"):
        parser.add_argument(name, required=True)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    sys.path.insert(0, str(peer("megatron_core")))
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    prefix = f"{options.output_prefix}_text_document"
    start, before = time.perf_counter(), processor_seconds()
    pieces = SentencePieceProcessor(model_file=options.tokenizer_model).get_piece_size()
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(pieces))
    with (
        open(options.input, encoding="utf-8") as lines,
        multiprocessing.Pool(options.workers, Encoder.load, (options.tokenizer_model,)) as pool,
    ):
        for ids, lengths, _ in pool.imap(Encoder.encode, lines, CHUNK_LINES):
            builder.add_document(np.array(ids), lengths)
        pool.close()
        pool.join()
    builder.finalize(f"{prefix}.idx")
    print(json.dumps({"seconds": time.perf_counter() - start, "processor": processor_seconds() - before}))


if __name__ == "__main__":
    main()
