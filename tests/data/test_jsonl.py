import gzip

import pytest
import zstandard

from megatron_lite.data.jsonl import MalformedLine, parse_texts, read_batches, total_bytes
from megatron_lite.errors import DataError

LINES = [b"line %d " % i + b"x" * (i % 50) for i in range(3000)]
TEXT = b"\n".join(LINES) + b"\n"


def zst(data):
    return zstandard.ZstdCompressor().compress(data)


PACKED = {
    "plain": ("f.jsonl", TEXT),
    "without a last newline": ("f.jsonl", TEXT[:-1]),
    "with carriage returns": ("f.jsonl", TEXT.replace(b"\n", b"\r\n")),
    "gz": ("f.jsonl.gz", gzip.compress(TEXT)),
    "gz of two members": ("f.jsonl.gz", gzip.compress(TEXT[:5000]) + gzip.compress(TEXT[5000:])),
    "zst": ("f.jsonl.zst", zst(TEXT)),
    "zst of two frames": ("f.jsonl.zst", zst(TEXT[:5000]) + zst(TEXT[5000:])),
    "zst without its size": ("f.jsonl.zst", zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)),
}


@pytest.mark.parametrize("case", PACKED)
@pytest.mark.parametrize("batch_bytes", [1, 1000, 1 << 20])
def test_all_lines_come_in_order_with_their_numbers(tmp_path, case, batch_bytes):
    name, data = PACKED[case]
    (tmp_path / name).write_bytes(data)
    lines = []
    for batch in read_batches([tmp_path / name], batch_bytes):
        assert batch.first_line == len(lines) + 1
        lines += batch.lines
    assert lines == LINES
    assert batch.position == len(data)


def test_line_numbers_begin_anew_with_every_file(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"1\n2\n")
    paths = [str(tmp_path / name) for name in "ab"]
    assert [(b.path, b.first_line, b.position) for b in read_batches(paths, 100)] == [
        (paths[0], 1, 4),
        (paths[1], 1, 8),
    ]
    assert total_bytes(paths) == 8


def test_an_empty_file_has_no_lines(tmp_path):
    for name, data in (("a", b""), ("a.gz", gzip.compress(b"")), ("a.zst", b"")):
        (tmp_path / name).write_bytes(data)
        assert list(read_batches([tmp_path / name], 100)) == []


@pytest.mark.parametrize("case", ["gz", "gz of two members", "zst", "zst of two frames", "zst without its size"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_compressed_data_that_is_cut_short_is_refused(tmp_path, case, kept):
    name, data = PACKED[case]
    (tmp_path / name).write_bytes(data[: int(kept * len(data))])
    with pytest.raises(DataError, match=rf"{name}: compressed data is damaged or cut short after line \d+"):
        list(read_batches([tmp_path / name], 100))


@pytest.mark.parametrize("name", ["f.jsonl.gz", "f.jsonl.zst"])
def test_data_that_is_not_compressed_as_its_name_says_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(TEXT)
    with pytest.raises(DataError, match="damaged"):
        list(read_batches([tmp_path / name], 100))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"missing\.jsonl is no file"):
        total_bytes([tmp_path / "missing.jsonl"])


def test_texts_are_taken_by_key():
    line = '{"text": "ü\\n", "n": 3, "title": ""}'.encode()
    assert parse_texts(line, ["text"]) == ["ü\n"]
    assert parse_texts(line, ["title", "text"]) == ["", "ü\n"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "blank line"),
        (b"  \t", "blank line"),
        (b'{"text": "a"', "no valid JSON"),
        (b'{"text": "a"} x', "no valid JSON"),
        (b'{"text": "\xff"}', "no valid JSON"),
        (b'{"text": "\\ud800"}', "no valid JSON"),
        (b'["text"]', "a JSON list, not an object"),
        (b"null", "a JSON NoneType, not an object"),
        (b'{"body": "a"}', "no key 'text'"),
        (b'{"text": 3}', "'text' holds a int, not a string"),
        (b'{"text": null}', "'text' holds a NoneType, not a string"),
    ],
)
def test_a_malformed_line_says_what_is_wrong(line, reason):
    with pytest.raises(MalformedLine, match=reason):
        parse_texts(line, ["text"])
