"""What a unigram model makes of the validation data: the bar that a trained model's validation loss must clear.

python tools/unigram_baseline.py CONFIG.yaml --output unigram.json [--set key=value ...]

The model is the share of each token among the training targets (one epoch), every count raised by one; its
cross-entropy in nats a token is over the targets of the validation data, those that training's last step counts.
"""

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from megatron_lite.config import load_config, samples_of_run
from megatron_lite.data.build import build_datasets
from megatron_lite.data.samples import Samples
from megatron_lite.errors import DataError, run_command
from megatron_lite.files import partial_path, publish

ROWS = 64  # samples read at once


def epoch_of(samples: Samples) -> Iterator[np.ndarray]:
    """Every sample of one epoch, some rows at a time."""
    for first in range(0, len(samples), ROWS):
        yield samples.read(first, min(ROWS, len(samples) - first))


def count_targets(samples: Iterable[np.ndarray], vocab_size: int) -> np.ndarray:
    """int64 [vocab_size]: how often each token is a target. A sample's first token is only ever an input."""
    counts = np.zeros(vocab_size, np.int64)
    for rows in samples:
        counts += np.bincount(rows[..., 1:].ravel(), minlength=vocab_size)
    return counts


def unigram_cross_entropy(train_counts: np.ndarray, valid_counts: np.ndarray) -> float:
    """-sum_v valid_v log((train_v + 1) / (sum train + vocabulary)) / sum valid, in nats a token."""
    log_shares = np.log(train_counts + 1) - math.log(int(train_counts.sum()) + len(train_counts))
    return float(-(valid_counts * log_shares).sum() / valid_counts.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG.yaml")
    parser.add_argument("--output", type=Path, required=True, metavar="F.json")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides of the configuration")
    options = parser.parse_args()
    config = load_config(options.config, options.set)
    train, model = config.train, config.model
    datasets = build_datasets(
        config.data,
        sequence_length=train.sequence_length,
        vocab_size=model.vocab_size,
        run_samples=samples_of_run(train),
        cache_dir=None,
    )
    if not datasets.valid:
        raise DataError("data.valid: empty, and no data.split; there is nothing to validate on")
    bar = tqdm(epoch_of(datasets.train), desc="unigram", total=-(-len(datasets.train) // ROWS), disable=None)
    train_counts = count_targets(bar, model.vocab_size)
    valid_counts = [count_targets(epoch_of(valid.samples), model.vocab_size) for valid in datasets.valid]
    losses = [unigram_cross_entropy(train_counts, counts) for counts in valid_counts]
    result = {
        # Weighted as valid_loss is.
        "cross_entropy": float(np.average(losses, weights=[valid.weight for valid in datasets.valid])),
        "train_tokens": int(train_counts.sum()),
        "valid_tokens": int(sum(counts.sum() for counts in valid_counts)),
    }
    partial_path(options.output).write_text(json.dumps(result) + "\n", encoding="utf-8")
    publish(options.output)
    print(f"unigram cross-entropy {result['cross_entropy']:.4f} nats a token over {result['valid_tokens']:,} tokens")


if __name__ == "__main__":
    run_command(main)
