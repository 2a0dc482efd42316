"""Small data sets and tokenizers for tests."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_lite.data.indexed import IndexedDataset, open_indexed
from megatron_lite.data.indexed_writer import IndexedDatasetWriter
from megatron_lite.data.sidecar import TokenizerIdentity
from megatron_lite.data.text_sample import Sampling
from megatron_lite.data.tokenizer_training import train_tokenizer

WORDS = "the model reads a shard of text and writes what it learned in bytes, 1234 tokens or 56 lines at a time".split()


def write_dataset(
    prefix: Path,
    documents: Sequence[Sequence[Sequence[int]]],
    dtype: type = np.uint16,
    tokenizer: TokenizerIdentity | None = None,
) -> IndexedDataset:
    with IndexedDatasetWriter(prefix, dtype, tokenizer) as writer:
        for document in documents:
            writer.add_document(document)
    return open_indexed(prefix)


def random_documents(rng: np.random.Generator, count: int, vocab_size: int = 60000) -> list[list[list[int]]]:
    """Documents of 0 to 3 sequences of 0 to 29 tokens."""
    return [
        [rng.integers(0, vocab_size, rng.integers(0, 30)).tolist() for _ in range(rng.integers(0, 4))]
        for _ in range(count)
    ]


def flat(documents: Sequence[Sequence[Sequence[int]]]) -> list[int]:
    return [token for document in documents for sequence in document for token in sequence]


def random_texts(seed: int, count: int) -> list[str]:
    rng = np.random.default_rng(seed)
    lines = [
        [" ".join(rng.choice(WORDS, rng.integers(2, 12))) for _ in range(rng.integers(1, 8))] for _ in range(count)
    ]
    return ["\n".join(text) + "\n" for text in lines]


def write_jsonl(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def train_small_tokenizer(directory: Path, vocab_size: int = 400) -> Path:
    corpus = write_jsonl(directory / "corpus.jsonl", random_texts(0, 200))
    train_tokenizer([str(corpus)], str(directory / "small"), vocab_size, Sampling())
    return directory / "small.model"


def train_byte_level(directory: Path, vocab_size: int = 330, digits: bool = True, **config: object) -> Path:
    """A directory with tokenizer.json and tokenizer_config.json, as SmolLM2 has them."""
    import tokenizers  # of few tests
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), words]) if digits else words
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    made.train_from_iterator(random_texts(0, 200), trainer)
    directory.mkdir(parents=True, exist_ok=True)
    made.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "chat_template": "{{ messages }}",
    } | config
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
