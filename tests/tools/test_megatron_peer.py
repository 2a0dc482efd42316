"""Files that megatron-core's own builder writes and merges, beside ours: equal byte for byte."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from peers import run_with_peer
from support.text import random_texts, train_small_tokenizer, write_jsonl

from megatron_lite.data.encode import Settings
from megatron_lite.data.fast_tokenizer import ADVERSARIAL
from megatron_lite.data.merge import merge_datasets
from megatron_lite.data.preprocess import preprocess

LOOP = Path(__file__).parents[2] / "tools" / "benchmark" / "megatron_preprocess.py"
MERGE = """
import sys
import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
output, *inputs = sys.argv[1:]
builder = IndexedDatasetBuilder(output + ".bin", dtype=np.uint16)
for prefix in inputs:
    builder.add_index(prefix)
builder.finalize(output + ".idx")
"""


def written(prefix):
    return [Path(f"{prefix}.{suffix}").read_bytes() for suffix in ("bin", "idx")]


@pytest.mark.nightly
def test_what_megatrons_loop_and_builder_write_and_merge_is_what_ours_do(tmp_path):
    tokenizer = str(train_small_tokenizer(tmp_path))
    rng = random.Random(0)
    texts = [*random_texts(1, 500), *[""] * 20, *(text for text in ADVERSARIAL if "\u2581" not in text)]
    rng.shuffle(texts)
    for name, part in (("a", texts[:200]), ("b", texts[200:])):
        corpus = str(write_jsonl(tmp_path / f"{name}.jsonl", part))
        preprocess(
            [corpus], str(tmp_path / name), Settings(tokenizer, append_eod=True), workers=1, skip_malformed=False
        )
        flags = ["--input", corpus, "--output-prefix", tmp_path / f"peer_{name}", "--tokenizer-model", tokenizer]
        subprocess.run([sys.executable, "-W", "ignore", LOOP, *flags], check=True)
        assert written(tmp_path / f"{name}_text_document") == written(tmp_path / f"peer_{name}_text_document")
    prefixes = [str(tmp_path / f"{name}_text_document") for name in "aba"]
    merge_datasets(prefixes, str(tmp_path / "ours"))
    run_with_peer("megatron_core", ["-W", "ignore", "-c", MERGE, str(tmp_path / "theirs"), *prefixes])
    assert written(tmp_path / "ours") == written(tmp_path / "theirs")
