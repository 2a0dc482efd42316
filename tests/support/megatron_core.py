"""What megatron-core 0.16.1 from the registry writes and orders, asked in a process of its own.

    PYTHONPATH=tools/benchmark python tests/support/megatron_core.py record     (tests/data/megatron_answers.json anew)
    python tests/support/megatron_core.py answer QUESTIONS.json OUT     (what `ask` runs)

A data set's question is `{"prefix": P, "lengths": [[sequence, ...], ...], "dtype": D}`: it writes P with token t of the
file being t. An order's question is `{"prefixes", "weights" (null for one prefix), "split", "seed", "sequence_length",
"samples"}`; its answer is an .npz of all index arrays of the training samples and, of one prefix, of one epoch of
validation samples.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = ROOT / "tests" / "data" / "megatron_answers.json"


def ask(questions: list[dict[str, Any]], out: Path) -> list[dict[str, np.ndarray]]:
    """The arrays that answer each question; of a data set none, but its files stand at its prefix."""
    from peers import run_with_peer  # the peer's own process, which answers, has another search path

    out.mkdir(parents=True, exist_ok=True)
    (out / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
    run_with_peer("megatron_core", ["-W", "ignore", __file__, "answer", str(out / "questions.json"), str(out)])
    return [dict(np.load(out / f"{i}.npz")) for i in range(len(questions))]


def write(prefix: str, lengths: list[list[int]], dtype: str) -> dict[str, np.ndarray]:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.dtype(dtype).type)
    begin = 0
    for document in lengths:
        builder.add_document(torch.arange(begin, begin + sum(document)), document)
        begin += sum(document)
    builder.finalize(f"{prefix}.idx")
    return {}


def order(prefixes, weights, split, seed, sequence_length, samples) -> dict[str, np.ndarray]:
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    class Tokenizer:
        vocab_size, eod, pad, unique_identifiers = None, 0, -1, {}

    config = GPTDatasetConfig(
        random_seed=seed, sequence_length=sequence_length, blend=(prefixes, weights), split=split,
        tokenizer=Tokenizer(), reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
    )  # fmt: skip
    rest = None if weights is None else 1
    train, valid, _ = BlendedMegatronDatasetBuilder(GPTDataset, [samples, rest, rest], lambda: True, config).build()
    arrays = {}
    if weights is not None:
        arrays["dataset"], arrays["dataset_sample"] = train.dataset_index, train.dataset_sample_index
    datasets = {f"train{i}": dataset for i, dataset in enumerate([train] if weights is None else train.datasets)}
    if weights is None and valid is not None:
        datasets["valid0"] = valid
    for name, dataset in datasets.items():
        for part in ("document_index", "sample_index", "shuffle_index"):
            arrays[f"{name}_{part}"] = getattr(dataset, part)
    first = [train[i] for i in range(min(3, len(train)))]
    arrays["text"] = np.array([np.append(row["tokens"].numpy(), row["labels"].numpy()[-1]) for row in first])
    return arrays


def read(prefix: str) -> dict[str, np.ndarray]:
    """All sequences of a data set, one after the other, and its documents."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(prefix)
    rows = [dataset[i] for i in range(len(dataset))]
    return {
        "tokens": np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.int64),
        "lengths": dataset.sequence_lengths,
        "documents": dataset.document_indices,
    }


def answer(questions: Path, out: Path) -> None:
    for i, question in enumerate(json.loads(questions.read_text(encoding="utf-8"))):
        kind = write if "lengths" in question else order if "prefixes" in question else read
        np.savez(out / f"{i}.npz", **kind(**question))


def record() -> None:
    """A few small cases: whole epochs and parts, the last epoch apart and not, empty sequences, a split, a blend."""
    import tempfile

    rng = np.random.default_rng(5)
    lengths = {name: rng.integers(0, 30, count).tolist() for name, count in (("a", 60), ("b", 25), ("c", 40))}
    lengths["b"][0] = lengths["b"][1] = 0
    alone = [("a", 30, "1"), ("a", 60, "1"), ("a", 95, "1"), ("a", 100, "80,15,5"), ("b", 45, "1")]
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        data = [
            {"prefix": str(out / name), "lengths": [[length] for length in its], "dtype": "uint16"}
            for name, its in lengths.items()
        ]
        cases = [
            {"prefixes": [name], "weights": None, "split": split, "seed": 1234, "sequence_length": 16,
             "samples": samples}
            for name, samples, split in alone
        ]  # fmt: skip
        cases.append(
            {"prefixes": ["a", "b", "c"], "weights": [3.0, 1.5, 0.7], "split": "90,10", "seed": 7,
             "sequence_length": 8, "samples": 150}
        )  # fmt: skip
        asked = [{**case, "prefixes": [str(out / name) for name in case["prefixes"]]} for case in cases]
        answers = ask([*data, *asked], out)[len(data) :]
    lines = [
        json.dumps({"question": case, "answer": {name: array.tolist() for name, array in arrays.items()}})
        for case, arrays in zip(cases, answers, strict=True)
    ]
    command = "PYTHONPATH=tools/benchmark python tests/support/megatron_core.py record"
    head = f'{{"recorded_by": "{command}", "version": "0.16.1", "lengths": {json.dumps(lengths)}, "cases": [\n'
    ANSWERS.write_text(head + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "record":
        record()
    else:
        answer(Path(sys.argv[2]), Path(sys.argv[3]))
