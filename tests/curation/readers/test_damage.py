"""Files cut short and files with a wrong bit, by the thousand: what comes of them is right, or they are named."""

import gzip
import io
import json
import random
from collections.abc import Iterator
from itertools import accumulate

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from support.curation_inputs import page, read_all, warc_record

WORDS = "the of a garden people paragraph number house tree wörd walks under blue sky".split()
_RANDOM = random.Random(3)
TEXTS = [" ".join(_RANDOM.choices(WORDS, k=_RANDOM.randrange(5, 60))) + f" {number}" for number in range(12)]
LINES = b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in TEXTS)
RECORDS = [warc_record(page(text), f"http://e/{number}") for number, text in enumerate(TEXTS)]
NAMED = {"truncated_file", "damaged_file"}


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def parquet() -> bytes:
    file = io.BytesIO()
    table = pyarrow.table({"text": TEXTS})
    pyarrow.parquet.write_table(table, file, row_group_size=3, compression="zstd", write_page_checksum=True)
    return file.getvalue()


PACKED = {
    "a.warc": RECORDS,
    "a.warc.gz": [gzip.compress(record) for record in RECORDS],
    "a.warc.zst": [zstd(record) for record in RECORDS],
}
# Where a file is cut between two records nothing tells that there were more.
ENDS = {name: set(accumulate(len(record) for record in records)) for name, records in PACKED.items()}
FILES = {name: b"".join(records) for name, records in PACKED.items()} | {
    "a.jsonl.gz": gzip.compress(LINES),
    "a.jsonl.zst": zstd(LINES),
    "a.parquet": parquet(),
    "one_member.warc.gz": gzip.compress(b"".join(RECORDS)),
}
CHECKED = sorted(FILES.keys() - {"a.warc"})  # a plain file has no check sums: a wrong bit in a text is a text


def outcomes(path, damaged: Iterator[bytes]) -> Iterator[tuple[list[str], set[str]]]:
    """The texts and the reasons of refusals that each of some files gives."""
    kind = path.name.split(".")[1]
    for data in damaged:
        path.write_bytes(data)
        documents, refusals = read_all(path, kind)
        yield [document.text.strip() for document in documents], {refusal.reason for refusal in refusals}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_cut_short_anywhere_is_named_and_gives_what_stands_before(tmp_path, name):
    whole, places = FILES[name], random.Random(1)
    cuts = {places.randrange(1, len(whole)) for _ in range(1000)} - ENDS.get(name, set())
    for texts, reasons in outcomes(tmp_path / name, (whole[:cut] for cut in sorted(cuts))):
        assert texts == TEXTS[: len(texts)] and reasons & NAMED


@pytest.mark.parametrize("name", CHECKED)
def test_a_wrong_bit_anywhere_costs_no_text_unless_the_file_is_named(tmp_path, name):
    whole, places = FILES[name], random.Random(2)

    def damaged() -> Iterator[bytes]:
        for _ in range(1000):
            data, at = bytearray(whole), places.randrange(len(whole))
            data[at] ^= 1 << places.randrange(8)
            yield bytes(data)

    for texts, reasons in outcomes(tmp_path / name, damaged()):
        # In the name of Parquet's column, a wrong bit refuses every row.
        assert texts == TEXTS or reasons & NAMED or (not texts and reasons == {"no_text"})
