import gzip
import json
import pickle
import random
import zlib
from math import inf

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from support.text import random_texts, write_jsonl

from megatron_lite.data.jsonl import MalformedLine
from megatron_lite.data.pieces import Damage, Place, cut_inputs
from megatron_lite.errors import DataError
from megatron_lite.lines import read_lines

TEXTS = [*random_texts(1, 60), "", "ü\u2581\0", "x" * 5000, *random_texts(2, 60)]


def write_parquet(path, texts, **options):
    pq.write_table(pa.table({"n": range(len(texts)), "text": texts}), path, **options)
    return path


def read(paths, keys=("text",), **options):
    return [
        record if isinstance(record, list) else str(record)
        for piece in cut_inputs([str(path) for path in paths], keys, **options)
        for record in pickle.loads(pickle.dumps(piece)).records(keys)
    ]


@pytest.fixture
def forms(tmp_path):
    """The same texts in every form that is read."""
    plain = write_jsonl(tmp_path / "c.jsonl", TEXTS)
    (tmp_path / "unended.jsonl").write_bytes(plain.read_bytes()[:-1])
    (tmp_path / "returns.jsonl").write_bytes(plain.read_bytes().replace(b"\n", b"\r\n"))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    write_parquet(tmp_path / "c.parquet", TEXTS)
    write_parquet(tmp_path / "groups.parquet", TEXTS, row_group_size=7)
    pq.write_table(pa.table({"text": pa.array(TEXTS, pa.large_string())}), tmp_path / "large.parquet")
    pq.write_table(pa.table({"text": pa.array(TEXTS).dictionary_encode()}), tmp_path / "dictionary.parquet")
    return sorted(path for path in tmp_path.iterdir())


@pytest.mark.parametrize("piece_bytes", [1, 7, 100, 1000, 1 << 22])
def test_every_form_of_file_gives_every_record_once_in_order(forms, piece_bytes):
    assert len(forms) == 9
    for path in forms:
        assert read([path], piece_bytes=piece_bytes) == [[text] for text in TEXTS]


def test_pieces_of_random_lines_are_the_lines_whatever_their_ends_fall_on(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(200):
        lines = [b'"' + b"x" * rng.integers(0, 9) + b'"' for _ in range(rng.integers(0, 12))]
        (tmp_path / "f").write_bytes(b"\n".join(lines) + b"\n" * rng.integers(0, 3))
        whole = (tmp_path / "f").read_bytes().splitlines()
        pieces = list(cut_inputs([str(tmp_path / "f")], (), piece_bytes=int(rng.integers(1, 20))))
        assert [line for piece in pieces for line in piece.lines()] == whole


@pytest.mark.parametrize("piece_bytes", [100, 1000])
def test_reading_goes_on_from_any_piece(forms, piece_bytes):
    paths = [str(path) for path in forms]
    whole = [(piece.file, piece.position) for piece in cut_inputs(paths, ("text",), piece_bytes=piece_bytes)]
    index = 0
    for number, (file, _) in enumerate(whole):
        index = index + 1 if number and whole[number - 1][0] == file else 0
        rest = cut_inputs(paths, ("text",), Place(file, index), piece_bytes)
        assert [(piece.file, piece.position) for _, piece in zip(range(3), rest, strict=False)] == whole[number:][:3]
    assert list(cut_inputs(paths, ("text",), Place(len(paths)), piece_bytes)) == []


def test_positions_reach_the_size_of_all_files(forms):
    positions = [piece.position for piece in cut_inputs([str(path) for path in forms], ("text",), piece_bytes=500)]
    assert positions == sorted(positions)
    assert positions[-1] == sum(path.stat().st_size for path in forms)


def test_a_line_longer_than_many_pieces_is_in_the_one_it_begins_in(tmp_path):
    path = write_jsonl(tmp_path / "c.jsonl", ["a", "x" * 100_000, "b"])
    pieces = list(cut_inputs([str(path)], ("text",), piece_bytes=1000))
    records = [list(piece.records(("text",))) for piece in pieces]
    assert [len(found) for found in records] == [2, *[0] * (len(pieces) - 2), 1]
    assert records[0][1] == ["x" * 100_000]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
def test_a_compressed_file_that_is_cut_short_gives_whole_records_and_ends_with_one_that_says_so(tmp_path, suffix, kept):
    texts = [str(number) for number in np.random.default_rng(0).integers(0, 2**62, 20000)]
    plain = write_jsonl(tmp_path / "c.jsonl", texts).read_bytes()
    data = gzip.compress(plain) if suffix == "gz" else zstandard.compress(plain)
    path = tmp_path / f"c.jsonl.{suffix}"
    path.write_bytes(data[: int(kept * len(data))])
    *records, last = read([path, write_jsonl(tmp_path / "next.jsonl", ["next"])], piece_bytes=1000)
    assert last == ["next"]
    assert records[-1].startswith("damaged file: compressed data is damaged or cut short")
    assert records[:-1] == [[text] for text in texts][: len(records) - 1]
    assert len(records) > 20000 * (kept - 0.4)


def test_a_damaged_parquet_file_ends_with_a_record_that_says_so(tmp_path):
    raw = bytearray(write_parquet(tmp_path / "c.parquet", TEXTS, compression="zstd", row_group_size=20).read_bytes())
    begin = pq.ParquetFile(tmp_path / "c.parquet").metadata.row_group(3).column(1).data_page_offset
    (tmp_path / "c.parquet").write_bytes(raw[:begin] + b"\xff" * 60 + raw[begin + 60 :])
    *records, last = read([tmp_path / "c.parquet"], piece_bytes=1)
    assert last.startswith("damaged file: damaged or no Parquet")
    assert records == [[text] for text in TEXTS][:60]
    (tmp_path / "c.parquet").write_bytes(b"nothing of the kind")
    assert read([tmp_path / "c.parquet"])[0].startswith("damaged file: ")


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.jsonl.zst", "c.parquet"])
def test_files_with_a_wrong_bit_or_cut_short_by_the_thousand_cost_no_record_unless_they_are_named(tmp_path, name):
    path, places, texts = tmp_path / name, random.Random(1), TEXTS[:30]
    write_jsonl(tmp_path / "plain.jsonl", texts)
    plain = (tmp_path / "plain.jsonl").read_bytes()
    if name == "c.parquet":
        write_parquet(path, texts, compression="zstd", row_group_size=7, write_page_checksum=True)
    else:
        checked = zstandard.ZstdCompressor(write_checksum=True)
        path.write_bytes(gzip.compress(plain) if name.endswith("gz") else checked.compress(plain))
    whole = path.read_bytes()
    for number in range(1000):
        data, at = bytearray(whole), places.randrange(1, len(whole))
        data[at] ^= 1 << places.randrange(8)
        path.write_bytes(data if number % 2 else whole[:at])
        try:
            records = read([path])
        except DataError as refused:
            assert "column" in str(refused)  # its name, or its type, has changed
            continue
        assert records == [[text] for text in texts] or "damaged file" in str(records[-1])


def test_a_parquet_file_without_a_column_of_text_is_refused(tmp_path):
    write_parquet(tmp_path / "c.parquet", TEXTS)
    with pytest.raises(DataError, match=r"c\.parquet has no column 'body'; it has n, text"):
        read([tmp_path / "c.parquet"], ("body",))
    with pytest.raises(DataError, match=r"column 'n' holds int64, not text"):
        read([tmp_path / "c.parquet"], ("n",))


def test_rows_without_text_and_with_broken_text_are_named(tmp_path):
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 3], np.int32).tobytes()), pa.py_buffer(b"a\xff\xfe")]
    )
    pq.write_table(pa.table({"text": broken}), tmp_path / "broken.parquet")
    write_parquet(tmp_path / "null.parquet", ["a", None, "b"])
    assert read([tmp_path / "broken.parquet"]) == [["a"], "broken UTF-8"]
    assert read([tmp_path / "null.parquet"]) == [["a"], "no text: 'text' is null", ["b"]]


def test_every_kind_of_fault_has_a_name_of_its_own(tmp_path):
    lines = [
        b"",
        b"{",
        b'{"text": "\xff"}',
        b"[]",
        b"{}",
        b'{"text": 1}',
        b'{"text": "\\ud800"}',
        b"\0",
        b"\xef\xbb\xbf{}",
    ]
    (tmp_path / "c.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (piece,) = cut_inputs([str(tmp_path / "c.jsonl")], ("text",))
    kinds = [record.kind for record in piece.records(("text",)) if isinstance(record, MalformedLine)]
    assert kinds == [
        "blank line",
        "no valid JSON",
        "no valid JSON, broken UTF-8",
        "a JSON list, not an object",
        "no key 'text'",
        "'text' holds a int, not a string",
        "no valid JSON",
        "no valid JSON",
        "no valid JSON",
    ]


def test_several_keys_come_in_their_order(tmp_path):
    record = {"title": "a", "text": "b"}
    (tmp_path / "c.jsonl").write_text(json.dumps(record) + "\n")
    pq.write_table(pa.table({"title": ["a"], "text": ["b"]}), tmp_path / "c.parquet")
    for name in ("c.jsonl", "c.parquet"):
        assert read([tmp_path / name], ("text", "title")) == [["b", "a"]]


def test_a_part_amid_a_long_line_has_no_lines_and_is_read_no_further_than_its_end(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 100 + b"\ny\n")
    with (tmp_path / "f").open("rb") as file:
        assert list(read_lines(file, inf, 10, 20)) == []
        assert file.tell() == 20
        assert list(read_lines(file, inf, 20, 101)) == []
        assert list(read_lines(file, inf, 100, 102)) == [(101, b"y")]


def test_every_whole_line_before_the_damage_of_a_compressed_file_is_kept(tmp_path):
    rng = random.Random(0)
    lines = [f'{{"text": "{rng.getrandbits(400):x}"}}'.encode() for _ in range(3000)]
    packed = gzip.compress(b"\n".join(lines) + b"\n")
    path = tmp_path / "f.jsonl.gz"
    path.write_bytes(packed[: len(packed) // 2])
    unpacked = zlib.decompressobj(31).decompress(path.read_bytes())
    *pieces, damage = cut_inputs([str(path)], ("text",), piece_bytes=5000)
    assert [line for piece in pieces for line in piece.lines] == lines[: unpacked.count(b"\n")]
    assert isinstance(damage, Damage)
