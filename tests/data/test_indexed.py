import struct

import numpy as np
import pytest
from support.text import random_documents, write_dataset

from megatron_lite.data import indexed, indexed_writer
from megatron_lite.data.indexed import open_indexed, token_dtype
from megatron_lite.data.indexed_writer import IndexedDatasetWriter
from megatron_lite.data.samples import GPTDataset, file_order
from megatron_lite.errors import DataError

# Written by the IndexedDatasetBuilder of megatron-core 0.16.1: documents, token type, .bin, .idx.
MEGATRON = {
    "int32": (
        [[[1, 2, 3]], [[70000, 5]]],
        np.int32,
        "0100000002000000030000007011010005000000",
        "4d4d4944494458000001000000000000000402000000000000000300000000000000030000000200000000000000000000000c00000000"
        "000000000000000000000001000000000000000200000000000000",
    ),
    "uint16, two sequences in a document, an empty document": (
        [[[1, 2], [3]], [], [[65000, 4, 5]], [[7]]],
        np.uint16,
        "010002000300e8fd040005000700",
        "4d4d49444944580000010000000000000008040000000000000005000000000000000200000001000000030000000100000000000000"
        "00000000040000000000000006000000000000000c0000000000000000000000000000000200000000000000020000000000000003000000"
        "000000000400000000000000",
    ),
}


@pytest.mark.parametrize("case", MEGATRON)
def test_writes_the_bytes_that_megatron_writes(tmp_path, case):
    documents, dtype, bin_hex, idx_hex = MEGATRON[case]
    write_dataset(tmp_path / "d", documents, dtype)
    assert (tmp_path / "d.bin").read_bytes().hex() == bin_hex
    assert (tmp_path / "d.idx").read_bytes().hex() == idx_hex


@pytest.mark.parametrize("case", MEGATRON)
def test_opens_files_that_megatron_wrote(tmp_path, case):
    documents, dtype, bin_hex, idx_hex = MEGATRON[case]
    (tmp_path / "d.bin").write_bytes(bytes.fromhex(bin_hex))
    (tmp_path / "d.idx").write_bytes(bytes.fromhex(idx_hex))
    dataset = open_indexed(tmp_path / "d")
    assert dataset.sidecar is None
    assert dataset.tokens.dtype == dtype
    assert [[s.tolist() for s in dataset.document(i)] for i in range(dataset.document_count)] == documents


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_any_documents_come_back_whatever_the_block_of_the_index_writer(tmp_path, monkeypatch, block):
    monkeypatch.setattr(indexed_writer, "BLOCK", block)
    documents = random_documents(np.random.default_rng(block), 60)
    dataset = write_dataset(tmp_path / "d", documents)
    assert [[s.tolist() for s in dataset.document(i)] for i in range(dataset.document_count)] == documents


def test_a_data_set_without_documents_opens(tmp_path):
    dataset = write_dataset(tmp_path / "d", [])
    assert (dataset.document_count, dataset.sequence_count, len(dataset.tokens)) == (0, 0, 0)


def test_a_document_outside_the_data_set_is_refused(tmp_path):
    dataset = write_dataset(tmp_path / "d", [[[1, 2]]])
    for index in (-1, 1):
        with pytest.raises(IndexError):
            dataset.document(index)


def test_the_sidecar_counts_what_was_written(tmp_path):
    sidecar = write_dataset(tmp_path / "d", [[[1, 9], [3]], []], np.int32).sidecar
    assert (sidecar.documents, sidecar.sequences, sidecar.tokens) == (2, 2, 3)
    assert (sidecar.max_token_id, sidecar.bin_bytes, sidecar.dtype) == (9, 12, "int32")


def test_uint16_is_taken_for_a_vocabulary_below_65500():
    assert token_dtype(65499) == np.uint16
    assert token_dtype(65500) == np.int32


@pytest.mark.parametrize(("dtype", "token"), [(np.uint16, 65536), (np.uint16, -1), (np.int32, 2**31)])
def test_a_token_id_that_does_not_fit_is_refused(tmp_path, dtype, token):
    with pytest.raises(DataError, match=f"token id {token} does not fit"):
        write_dataset(tmp_path / "d", [[[1, token]]], dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_sequence_longer_than_its_length_can_say_is_refused(tmp_path):
    tokens = np.broadcast_to(np.uint16(7), 2**31)  # one token, 2^31 times, of no memory
    with (
        pytest.raises(DataError, match="a sequence of 2147483648 tokens; the index holds at most 2147483647"),
        IndexedDatasetWriter(tmp_path / "d", np.uint16) as writer,
    ):
        writer.add_documents(tokens, np.array([2**31]), np.array([1]))
    assert list(tmp_path.iterdir()) == []


def test_an_exception_while_writing_leaves_the_old_data_set_and_no_partial_files(tmp_path):
    write_dataset(tmp_path / "d", [[[1, 2, 3]]])
    with pytest.raises(RuntimeError), IndexedDatasetWriter(tmp_path / "d", np.uint16) as writer:
        writer.add_document([[4, 5]])
        raise RuntimeError
    assert open_indexed(tmp_path / "d").sequence(0).tolist() == [1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.bin", "d.idx", "d.json"]


@pytest.mark.parametrize("published", [0, 1, 2])
def test_a_crash_between_the_renames_leaves_no_data_set_that_opens(tmp_path, monkeypatch, published):
    write_dataset(tmp_path / "d", [[[1, 2, 3]]])
    original, done = indexed_writer.publish, []

    def crash_after(path, partial=None):
        if len(done) == published:
            raise OSError("no space")
        original(path, partial)
        done.append(path)

    monkeypatch.setattr(indexed_writer, "publish", crash_after)
    monkeypatch.setattr("megatron_lite.data.sidecar.publish", crash_after)
    with pytest.raises(OSError, match="no space"):
        write_dataset(tmp_path / "d", [[[4, 5]]])
    with pytest.raises(DataError, match=r"d\.idx is missing"):
        open_indexed(tmp_path / "d")


def overwrite(path, offset, data):
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(data)] = data
    path.write_bytes(raw)


# The data set has sequences of 2, 1 and 3 tokens: lengths at 34, pointers at 46, documents [0, 2, 3] at 70.
FAULTS = {
    "is no index of Megatron's": (".idx", 0, b"X"),
    "has version 2": (".idx", 9, b"\x02"),
    "token type 7 is none of": (".idx", 17, b"\x07"),
    "has length -1": (".idx", 34, struct.pack("<i", -1)),
    r"sequence 1 of 1000 tokens at byte 4 does not lie in the 12 bytes": (".idx", 38, struct.pack("<i", 1000)),
    "sequence 2 of 3 tokens at byte 5 does not lie": (".idx", 62, struct.pack("<q", 5)),
    "sequence 1 of 1 tokens at byte -2 does not lie": (".idx", 54, struct.pack("<q", -2)),
    "the index describes 10 bytes, the .bin file has 12": (".idx", 42, struct.pack("<i", 2)),
    "document 0 begins at sequence 1, not in": (".idx", 70, struct.pack("<q", 1)),
    "document 1 begins at sequence 4": (".idx", 78, struct.pack("<q", 4)),
    "the last document ends at sequence 2, there are 3": (".idx", 86, struct.pack("<q", 2)),
}


@pytest.mark.parametrize("at_once", [1, 2, 1 << 24])
@pytest.mark.parametrize("message", FAULTS)
def test_a_damaged_index_is_refused(tmp_path, monkeypatch, message, at_once):
    monkeypatch.setattr(indexed, "CHECKED_AT_ONCE", at_once)
    write_dataset(tmp_path / "d", [[[1, 2], [3]], [[4, 5, 6]]])
    suffix, offset, data = FAULTS[message]
    overwrite(tmp_path / f"d{suffix}", offset, data)
    with pytest.raises(DataError, match=message):
        open_indexed(tmp_path / "d")


def test_documents_that_run_backwards_are_refused_wherever_the_index_is_divided(tmp_path, monkeypatch):
    write_dataset(tmp_path / "d", [[[1]], [[2]], [[3]], [[4]]])
    overwrite(tmp_path / "d.idx", 34 + 12 * 4 + 8 * 2, struct.pack("<q", 0))  # [0, 1, 0, 3, 4]
    for at_once in (1, 2, 3, 100):
        monkeypatch.setattr(indexed, "CHECKED_AT_ONCE", at_once)
        with pytest.raises(DataError, match=r"document 2 begins at sequence 0, not in \[1, 4\]"):
            open_indexed(tmp_path / "d")


def test_a_document_of_more_than_two_to_the_31_tokens_is_read_as_several_sequences(tmp_path):
    longest, count = 2**31 - 1, 3
    header = indexed.HEADER.pack(indexed.MAGIC, 1, 1, count, 2)
    arrays = np.full(count, longest, np.int32), np.arange(count) * longest, np.array([0, count])
    (tmp_path / "d.idx").write_bytes(header + b"".join(array.tobytes() for array in arrays))
    with (tmp_path / "d.bin").open("wb") as file:  # a file with a hole
        file.truncate(count * longest)
        file.seek(5 * 10**9)
        file.write(b"\x07")
    dataset = GPTDataset(open_indexed(tmp_path / "d"), 1000, file_order)
    assert (len(dataset), dataset.token_count) == ((count * longest - 1) // 1000, count * longest)
    (row,) = dataset.read(5 * 10**6, 1)
    assert (row[0], row[1:].max()) == (7, 0)
    assert dataset.read(len(dataset) - 1, 1).shape == (1, 1001)


@pytest.mark.parametrize(("suffix", "change"), [(".bin", 2), (".bin", -2), (".idx", 1), (".idx", -1)])
def test_files_of_the_wrong_size_are_refused(tmp_path, suffix, change):
    write_dataset(tmp_path / "d", [[[1, 2], [3]]])
    (tmp_path / "d.json").unlink()
    path = tmp_path / f"d{suffix}"
    raw = path.read_bytes()
    path.write_bytes(raw + b"\0" * change if change > 0 else raw[:change])
    with pytest.raises(DataError, match="bytes"):
        open_indexed(tmp_path / "d")


def test_a_sidecar_of_other_files_is_refused(tmp_path):
    write_dataset(tmp_path / "other", [[[1, 2], [3]]])
    write_dataset(tmp_path / "d", [[[1, 2]]])
    (tmp_path / "other.json").rename(tmp_path / "d.json")
    with pytest.raises(DataError, match=r"says bin_bytes 6, the data set has 4"):
        open_indexed(tmp_path / "d")


def test_a_sidecar_that_is_no_sidecar_is_refused(tmp_path):
    write_dataset(tmp_path / "d", [[[1, 2]]])
    for content in ("{", "{}", "[]", '{"tokenizer": null}'):
        (tmp_path / "d.json").write_text(content)
        with pytest.raises(DataError, match="is no sidecar"):
            open_indexed(tmp_path / "d")


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_missing_file_is_named(tmp_path, suffix):
    write_dataset(tmp_path / "d", [[[1, 2]]])
    (tmp_path / f"d{suffix}").unlink()
    with pytest.raises(DataError, match=rf"d\{suffix} is missing"):
        open_indexed(tmp_path / "d")
