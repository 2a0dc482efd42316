import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.killing import killed_at
from support.text import random_documents, write_dataset

from megatron_lite.data import indexed_writer
from megatron_lite.data.indexed import HEADER, open_indexed
from megatron_lite.data.merge import find_prefixes, merge_datasets
from megatron_lite.data.sidecar import Sidecar, TokenizerIdentity
from megatron_lite.errors import DataError, UsageError

TOOL = Path(__file__).parents[2] / "tools" / "merge_datasets.py"
TOKENIZER = TokenizerIdentity("ab" * 32, 60000, 2, {"</s>": 2})
# The merge of two data sets by the IndexedDatasetBuilder of megatron-core 0.16.1, int32, add_index of each:
# [[[1, 2], [3]], []] and [[[70000, 5]], [], [[6], [7, 8]]].
MEGATRON_BIN = "01000000020000000300000070110100050000000600000007000000" + "08000000"
MEGATRON_IDX = (
    "4d4d494449445800000100000000000000040500000000000000060000000000000002000000010000000200000001000000020000000000"
    "00000000000008000000000000000c000000000000001400000000000000180000000000000000000000000000000200000000000000020000"
    "0000000000030000000000000003000000000000000500000000000000"
)


def write_parts(directory, tokenizer=TOKENIZER, count=5):
    documents = [random_documents(np.random.default_rng(seed), 3 * seed) for seed in range(count)]
    prefixes = [str(directory / f"part{number}") for number in range(count)]
    for prefix, part in zip(prefixes, documents, strict=True):
        write_dataset(prefix, part, tokenizer=tokenizer)
    return prefixes, [document for part in documents for document in part]


def files(prefix):
    return [Path(f"{prefix}.{suffix}").read_bytes() for suffix in ("bin", "idx", "json")]


def test_the_bytes_are_those_of_megatrons_merge(tmp_path):
    write_dataset(tmp_path / "a", [[[1, 2], [3]], []], np.int32)
    write_dataset(tmp_path / "b", [[[70000, 5]], [], [[6], [7, 8]]], np.int32)
    merge_datasets([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "m"))
    assert [data.hex() for data in files(tmp_path / "m")[:2]] == [MEGATRON_BIN, MEGATRON_IDX]


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_a_merge_is_the_data_set_that_one_writer_would_have_written(tmp_path, monkeypatch, block):
    prefixes, documents = write_parts(tmp_path)
    write_dataset(tmp_path / "whole", documents, tokenizer=TOKENIZER)
    monkeypatch.setattr(indexed_writer, "BLOCK", block)
    merged = merge_datasets(prefixes, str(tmp_path / "out" / "m"))
    assert files(tmp_path / "out" / "m") == files(tmp_path / "whole")
    assert merged.tokenizer == TOKENIZER and merged.unknown == []
    dataset = open_indexed(tmp_path / "out" / "m")
    assert [[s.tolist() for s in dataset.document(i)] for i in range(dataset.document_count)] == documents


def test_a_merge_of_merges_is_the_merge(tmp_path):
    prefixes, _ = write_parts(tmp_path)
    merge_datasets(prefixes, str(tmp_path / "once"))
    merge_datasets(prefixes[:2], str(tmp_path / "first"))
    merge_datasets(prefixes[2:], str(tmp_path / "rest"))
    merge_datasets([str(tmp_path / "first"), str(tmp_path / "rest")], str(tmp_path / "twice"))
    assert files(tmp_path / "once") == files(tmp_path / "twice")


def test_bytes_of_text_are_summed_and_unknown_where_one_is(tmp_path):
    prefixes, _ = write_parts(tmp_path)
    for number, prefix in enumerate(prefixes):
        replace(Sidecar.load(prefix), text_bytes=10**number).save(prefix)
    merge_datasets(prefixes, str(tmp_path / "m"))
    assert open_indexed(tmp_path / "m").sidecar.text_bytes == 11111
    replace(Sidecar.load(prefixes[3]), text_bytes=None).save(prefixes[3])
    merge_datasets(prefixes, str(tmp_path / "m"))
    assert open_indexed(tmp_path / "m").sidecar.text_bytes is None


def test_a_data_set_without_a_sidecar_makes_the_tokenizer_unknown(tmp_path):
    prefixes, documents = write_parts(tmp_path)
    Path(f"{prefixes[3]}.json").unlink()
    merged = merge_datasets(prefixes, str(tmp_path / "m"))
    sidecar = open_indexed(tmp_path / "m").sidecar
    assert (merged.unknown, sidecar.tokenizer) == ([prefixes[3]], None)
    assert sidecar.max_token_id == max(t for document in documents for sequence in document for t in sequence)


def test_different_tokenizers_and_token_types_are_refused_before_anything_is_written(tmp_path):
    write_dataset(tmp_path / "a", [[[1]]], tokenizer=TOKENIZER)
    write_dataset(tmp_path / "b", [[[1]]], tokenizer=replace(TOKENIZER, sha256="cd" * 32))
    write_dataset(tmp_path / "c", [[[1]]], np.int32, tokenizer=TOKENIZER)
    with pytest.raises(DataError, match=r"different tokenizers: .*a by abababab.*b by cdcdcdcd"):
        merge_datasets([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "m"))
    with pytest.raises(DataError, match=r"different token types: .*a has uint16, .*c has int32"):
        merge_datasets([str(tmp_path / "a"), str(tmp_path / "c")], str(tmp_path / "m"))
    assert not list(tmp_path.glob("m*"))


def test_bytes_that_the_sidecar_was_not_written_for_are_refused(tmp_path):
    prefixes, _ = write_parts(tmp_path)
    raw = bytearray(Path(f"{prefixes[2]}.bin").read_bytes())
    raw[10] ^= 1
    Path(f"{prefixes[2]}.bin").write_bytes(raw)
    with pytest.raises(DataError, match=r"part2\.bin is damaged: its checksum"):
        merge_datasets(prefixes, str(tmp_path / "m"))
    assert not list(tmp_path.glob("m*"))


def test_sequences_out_of_their_order_are_refused(tmp_path):
    write_dataset(tmp_path / "a", [[[1, 2], [3, 4]]])
    raw = bytearray((tmp_path / "a.idx").read_bytes())
    raw[42:58] = np.array([4, 0], "<i8").tobytes()
    (tmp_path / "a.idx").write_bytes(raw)
    (tmp_path / "a.json").unlink()
    with pytest.raises(DataError, match="sequence 0 begins at byte 4, the one before it ends at 0"):
        merge_datasets([str(tmp_path / "a")], str(tmp_path / "m"))


def test_killed_at_any_step_it_leaves_no_half_data_set_and_the_next_merge_is_whole(tmp_path):
    prefixes, _ = write_parts(tmp_path)
    merge_datasets(prefixes, str(tmp_path / "whole"))
    for step in range(100):
        killed = killed_at(step, lambda: merge_datasets(prefixes, str(tmp_path / "m")))
        if (tmp_path / "m.idx").exists():
            assert files(tmp_path / "m") == files(tmp_path / "whole")
        merge_datasets(prefixes, str(tmp_path / "m"))
        assert files(tmp_path / "m") == files(tmp_path / "whole")
        if not killed:
            break
    assert 10 < step < 99


def test_a_directory_stands_for_its_data_sets_by_name(tmp_path):
    prefixes, _ = write_parts(tmp_path)
    assert find_prefixes([str(tmp_path)]) == prefixes
    assert find_prefixes([f"{prefixes[1]}.idx", f"{prefixes[0]}.bin", prefixes[2]]) == [prefixes[i] for i in (1, 0, 2)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty is a directory without a data set"):
        find_prefixes([str(tmp_path / "empty")])


def test_the_command_merges_and_exits_with_the_right_codes(tmp_path):
    def tool(*arguments):
        return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True)

    prefixes, documents = write_parts(tmp_path)
    done = tool("--input", *prefixes, "--output-prefix", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"5 data sets: {len(documents)} documents, ")
    assert tool("--input", *prefixes, "--output-prefix", prefixes[0]).returncode == 2
    missing = tool("--input", tmp_path / "none", "--output-prefix", tmp_path / "m")
    assert (missing.returncode, missing.stderr.count("\n")) == (3, 1)


@pytest.mark.nightly
def test_beyond_four_gigabytes_and_two_billion_tokens_pointers_and_counts_are_exact(tmp_path):
    size = 2_200_000_000  # tokens of one byte in each of two data sets, in files with holes
    lengths = np.array([2_000_000_000, 199_999_999, 1], "<i4")
    pointers = np.array([0, 2_000_000_000, size - 1], "<i8")
    for name in "ab":
        with open(tmp_path / f"{name}.bin", "wb") as file:
            file.truncate(size)
            file.seek(size - 1)
            file.write(name.encode())
        header = HEADER.pack(b"MMIDIDX\0\0", 1, 1, 3, 3)
        index = lengths.tobytes() + pointers.tobytes() + np.array([0, 1, 3], "<i8").tobytes()
        (tmp_path / f"{name}.idx").write_bytes(header + index)
    merge_datasets([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "m"))
    dataset = open_indexed(tmp_path / "m")
    assert dataset.pointers.tolist() == [*pointers, *(pointers + size)]
    assert dataset.documents.tolist() == [0, 1, 3, 4, 6]
    assert dataset.sidecar.tokens == dataset.sidecar.bin_bytes == 2 * size > max(2**31, 2**32)
    assert [dataset.sequence(i).tolist() for i in (2, 5)] == [[ord("a")], [ord("b")]]
