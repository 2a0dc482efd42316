"""Shard files give back what was written, byte for byte the same each time, and name what is damaged."""

import json

import pytest
import zstandard

from megatron_lite.curation.documents import Document
from megatron_lite.curation.shards import ShardWriter, read_records, read_shard
from megatron_lite.errors import DataError

DOCUMENTS = [
    Document("web/0/0", "Grüße, 世界\x00\x07\n\u2028 a line", "web", "https://example.org/?q=ä", "de", {"words": 3}),
    Document("web/0/1", "", "web"),
    Document("code/3/17", 'print("\\n")\r\n', "code", metadata={"path": "a/b.py", "scores": [0.5, 1e-9], "kept": True}),
]


def write(path, documents):
    with ShardWriter(path) as writer:
        for document in documents:
            writer.write(document)
    return path


def test_documents_come_back_as_they_were_written(tmp_path):
    assert list(read_shard(write(tmp_path / "a.jsonl.zst", DOCUMENTS))) == DOCUMENTS


def test_an_empty_shard_holds_no_document(tmp_path):
    assert list(read_shard(write(tmp_path / "a.jsonl.zst", []))) == []


def test_the_same_documents_give_the_same_bytes(tmp_path):
    first, second = (write(tmp_path / f"{name}.jsonl.zst", DOCUMENTS * 1000).read_bytes() for name in "ab")
    assert first == second


def test_any_zstd_and_any_json_parser_can_read_a_shard(tmp_path):
    path = write(tmp_path / "a.jsonl.zst", DOCUMENTS)
    with path.open("rb") as file:
        text = zstandard.ZstdDecompressor().stream_reader(file).read()
    records = [json.loads(line) for line in text.decode().split("\n")[:-1]]
    assert [(record["id"], record["text"]) for record in records] == [(one.id, one.text) for one in DOCUMENTS]


@pytest.mark.parametrize("keep", [0.3, 0.999])
def test_a_shard_cut_short_is_named(tmp_path, keep):
    path = write(tmp_path / "a.jsonl.zst", DOCUMENTS * 10_000)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(DataError, match=r"a\.jsonl\.zst: damaged or cut short after record \d+"):
        list(read_shard(path))


def test_a_flipped_bit_is_found(tmp_path):
    path = write(tmp_path / "a.jsonl.zst", DOCUMENTS)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"a\.jsonl\.zst"):
        list(read_records(path))


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl\.zst: No such file"):
        list(read_shard(tmp_path / "gone.jsonl.zst"))
