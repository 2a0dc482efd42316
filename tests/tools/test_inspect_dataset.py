import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import inspect_dataset
import numpy as np
import pytest
from support.checkpoints import untrained
from support.layouts import Layout
from support.text import random_documents, random_texts, train_byte_level, train_small_tokenizer, write_dataset

from megatron_lite.checkpoint import save
from megatron_lite.data import inspection
from megatron_lite.data.indexed import open_indexed
from megatron_lite.data.indexed_writer import IndexedDatasetWriter
from megatron_lite.data.inspection import choose_documents, document_lengths, faults, statistics
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.data.sidecar import Sidecar

TOOL = Path(__file__).parents[2] / "tools" / "inspect_dataset.py"
TEXTS = [*random_texts(1, 30), "", "ü\u2581"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return SentencePieceTokenizer(train_small_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def prefix(tmp_path, tokenizer):
    with IndexedDatasetWriter(tmp_path / "d", np.uint16, tokenizer.identity) as writer:
        for text in TEXTS:
            ids = [*tokenizer.encode(text), tokenizer.eod_id] if text else []
            counts = np.array([len(ids)] if ids else [], np.int64)
            writer.add_documents(np.array(ids), counts, np.array([len(counts)]), len(text.encode()))
    return tmp_path / "d"


def tool(*arguments):
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("block", [1, 4, 1 << 20])
def test_the_statistics_are_those_of_the_documents(tmp_path, monkeypatch, block):
    documents = random_documents(np.random.default_rng(3), 50)
    dataset = write_dataset(tmp_path / "d", documents)
    monkeypatch.setattr(inspection, "BLOCK", block)
    sizes = [sum(len(sequence) for sequence in document) for document in documents]
    assert np.concatenate(list(document_lengths(dataset))).tolist() == sizes
    found = statistics(dataset)
    assert (found.documents, found.tokens, found.bin_bytes) == (50, sum(sizes), 2 * sum(sizes))
    assert found.sequences == sum(len(document) for document in documents)
    assert (found.shortest, found.longest, found.empty_documents) == (min(sizes), max(sizes), sizes.count(0))
    assert found.mean == pytest.approx(sum(sizes) / 50)
    expected = [0] * (max(sizes).bit_length() + 1)
    for size in sizes:
        expected[size.bit_length()] += 1
    assert found.histogram == expected
    assert found.bytes_per_token is None


def test_lengths_at_the_powers_of_two_fall_on_their_side(tmp_path):
    dataset = write_dataset(tmp_path / "d", [[[7] * size] for size in (1, 2, 3, 4, 7, 8)])
    assert statistics(dataset).histogram == [0, 1, 2, 2, 1]


def test_a_data_set_without_documents_has_statistics(tmp_path):
    found = statistics(write_dataset(tmp_path / "d", []))
    assert (found.documents, found.shortest, found.longest, found.histogram) == (0, 0, 0, [])
    assert tool(tmp_path / "d", "--verify").returncode == 0


def test_bytes_a_token_are_those_of_the_text(prefix):
    dataset = open_indexed(prefix)
    assert statistics(dataset).bytes_per_token == sum(len(text.encode()) for text in TEXTS) / len(dataset.tokens)


def test_samples_of_a_tokenizer_jsons_data_set_are_decoded(tmp_path, monkeypatch, capsys):
    tokenizer = open_tokenizer(train_byte_level(tmp_path / "model"))
    write_dataset(tmp_path / "d", [[[*tokenizer.encode("caf\u00e9 <|im_end|>"), 2]]], tokenizer=tokenizer.identity)
    options = ["inspect_dataset", str(tmp_path / "d"), "--samples", "1", "--tokenizer-model", tokenizer.path]
    monkeypatch.setattr(sys, "argv", options)
    inspect_dataset.main()
    assert "tokens:\ncaf\u00e9 <|im_end|>\n" in capsys.readouterr().out


def test_a_run_gives_the_tokenizer_that_decodes(tmp_path, monkeypatch, capsys, prefix, tokenizer):
    save(tmp_path / "run" / "checkpoints", untrained(Layout(layers=1), vocab_size=500), 1, 1, tokenizer=tokenizer)
    shown = []
    for path in (tokenizer.path, str(tmp_path / "run")):
        monkeypatch.setattr(sys, "argv", ["inspect_dataset", str(prefix), "--samples", "3", "--tokenizer-model", path])
        inspect_dataset.main()
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and "document" in shown[0]


def test_samples_follow_their_seed(tmp_path):
    dataset = write_dataset(tmp_path / "d", [[[1]]] * 1000)
    chosen = choose_documents(dataset, 5, 1)
    assert chosen == sorted(set(chosen)) == choose_documents(dataset, 5, 1) != choose_documents(dataset, 5, 2)
    assert choose_documents(dataset, 5000, 1) == list(range(1000))


def test_a_sound_data_set_has_no_fault(prefix):
    assert list(faults(open_indexed(prefix))) == []


def damage(path, offset, data):
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(data)] = data
    path.write_bytes(raw)


def test_a_flipped_bit_in_the_tokens_is_found(prefix):
    path = prefix.with_suffix(".bin")
    damage(path, 40, bytes([path.read_bytes()[40] ^ 1]))
    assert any("d.bin has checksum" in line for line in faults(open_indexed(prefix)))


def test_a_changed_index_that_still_opens_is_found(prefix):
    # Two sequences swap a token: every pointer stays within the .bin file and its end is the same.
    lengths = open_indexed(prefix).lengths[:2] + np.array([1, -1], np.int32)
    damage(prefix.with_suffix(".idx"), 34, lengths.astype("<i4").tobytes())
    found = list(faults(open_indexed(prefix)))
    assert any("sequence 1 begins at byte" in line for line in found)
    assert any("d.idx has checksum" in line for line in found)


def test_token_ids_beyond_the_vocabulary_and_the_sidecar_are_found(prefix, tokenizer):
    sidecar = Sidecar.load(prefix)
    small = replace(sidecar.tokenizer, vocab_size=300)
    replace(sidecar, tokenizer=small, max_token_id=5, tokens=1).save(prefix)
    found = "\n".join(faults(open_indexed(prefix)))
    assert "the highest token id is" in found and "the sidecar says 5" in found
    assert "the tokenizer has 300" in found
    assert f"the .bin file has {len(open_indexed(prefix).tokens)} tokens, the sidecar says 1" in found


def test_negative_ids_and_a_missing_sidecar_are_found(tmp_path):
    write_dataset(tmp_path / "d", [[[1, 2, 3]]], np.int32)
    damage(tmp_path / "d.bin", 4, np.int32(-7).tobytes())
    (tmp_path / "d.json").unlink()
    found = list(faults(open_indexed(tmp_path / "d")))
    assert found == [
        f"{tmp_path / 'd'}.bin holds token id -7",
        f"{tmp_path / 'd'}.json is missing: there is nothing to check the bytes against",
    ]


def test_the_command_shows_samples_and_says_that_all_is_right(prefix, tokenizer):
    done = tool(prefix, "--verify", "--samples", len(TEXTS), "--tokenizer-model", tokenizer.path)
    assert done.returncode == 0, done.stderr
    assert f"documents     {len(TEXTS)}, 1 of them empty" in done.stdout
    assert "verified: no fault found" in done.stdout
    assert all(text[:300] in done.stdout for text in TEXTS)


def test_the_command_writes_json(prefix, tokenizer, tmp_path):
    done = tool(prefix, "--samples", 3, "--tokenizer-model", tokenizer.path, "--json", "--seed", 7)
    found = json.loads(done.stdout)
    chosen = choose_documents(open_indexed(prefix), 3, 7)
    assert [sample["document"] for sample in found["samples"]] == chosen
    assert [sample["text"] for sample in found["samples"]] == [TEXTS[index] for index in chosen]
    assert found["sidecar"]["tokenizer"]["special_tokens"]["<|fim_suffix|>"] == 11
    tool(prefix, "--verify", "--json", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["faults"] == []


def test_the_command_exits_with_the_right_codes(prefix, tmp_path):
    path = prefix.with_suffix(".bin")
    assert tool(prefix, "--samples", 3).returncode == 2
    (tmp_path / "other").mkdir()
    other = train_small_tokenizer(tmp_path / "other", 390)
    wrong = tool(prefix, "--samples", 3, "--tokenizer-model", other)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (3, 1)
    damage(path, 0, b"\0")
    assert tool(prefix).returncode == 0
    assert tool(prefix, "--verify").returncode == 3
    path.write_bytes(path.read_bytes()[:-2])
    assert tool(prefix).returncode == 3
