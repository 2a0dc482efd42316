"""Parquet: rows become documents or are refused by name, whole files and ranges of row groups alike."""

from collections import Counter
from itertools import pairwise

import pyarrow
import pyarrow.parquet
import pytest
from support.curation_inputs import read_all

from megatron_lite.curation.config import SourceConfig
from megatron_lite.curation.readers import cut, list_files

TEXTS = [f"text {number} " + "wörd " * (number % 50) for number in range(500)]


def write(path, columns, **options):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


@pytest.mark.parametrize(
    "kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]
)
@pytest.mark.parametrize("shard_bytes", [10**9, 3000])
def test_rows_become_documents_numbered_in_the_file(tmp_path, kind, shard_bytes):
    columns = {
        "text": pyarrow.array(TEXTS, kind),
        "url": [f"http://e/{n}" for n in range(500)],
        "score": [n / 4 for n in range(500)],
        "other": [[1, 2]] * 500,
    }
    path = write(tmp_path / "a.parquet", columns, row_group_size=70)
    documents, refusals = read_all(path, "parquet", shard_bytes, fields={"keep": ["score"]})
    assert [(document.id, document.text) for document in documents] == [
        (f"s/0/{n}", text) for n, text in enumerate(TEXTS)
    ]
    assert documents[7].url == "http://e/7" and documents[7].metadata == {"score": 1.75} and refusals == []


def test_a_large_file_is_cut_by_row_groups(tmp_path):
    path = write(tmp_path / "a.parquet", {"text": TEXTS}, row_group_size=70)
    files = list_files("s", SourceConfig(kind="parquet", paths=(str(path),)))
    slices = list(cut(files, "parquet", 3000))
    assert len(slices) > 2 and slices[0].begin == 0 and slices[-1].end == 8
    assert all(one.end == following.begin for one, following in pairwise(slices))
    assert len(list(cut(files, "parquet", 10**9))) == 1


def test_bad_cells_are_each_counted_by_name(tmp_path):
    good, broken = b"good", b"a\xff"
    cells = [good, broken, b"", None, b" \n", b"x" * 1000, b"nul\0"] * 300
    column = pyarrow.array(cells, pyarrow.binary()).view(pyarrow.string())
    documents, refusals = read_all(
        write(tmp_path / "a.parquet", {"text": column}), "parquet", reading={"max_record_bytes": 500}
    )
    assert Counter(document.text for document in documents) == {"good": 300, "nul": 300}
    reasons = Counter(refusal.reason for refusal in refusals)
    assert reasons == {"invalid_utf8": 300, "empty_text": 600, "no_text": 300, "too_large": 300}


def test_a_column_that_is_missing_or_holds_no_strings_refuses_every_row(tmp_path):
    write(tmp_path / "a.parquet", {"content": TEXTS})
    documents, refusals = read_all(tmp_path / "a.parquet", "parquet")
    assert documents == [] and Counter(refusal.reason for refusal in refusals) == {"no_text": 500}
    write(tmp_path / "b.parquet", {"text": list(range(500))})
    documents, refusals = read_all(tmp_path / "b.parquet", "parquet")
    assert documents == [] and Counter(refusal.reason for refusal in refusals) == {"text_not_string": 500}


@pytest.mark.parametrize("damage", ["cut", "head", "body", "empty"])
def test_a_damaged_file_is_named_and_read_up_to_the_damage(tmp_path, damage):
    path = write(tmp_path / "a.parquet", {"text": TEXTS}, row_group_size=70, compression="zstd")
    data = bytearray(path.read_bytes())
    match damage:
        case "cut":
            data = data[: len(data) // 2]
        case "head":
            data = data[100:]
        case "body":
            data[len(data) // 2 : len(data) // 2 + 40] = b"\xff" * 40
        case "empty":
            data = b""
    path.write_bytes(data)
    for shard_bytes in (10**9, 3000):
        documents, refusals = read_all(path, "parquet", shard_bytes)
        assert "damaged_file" in {refusal.reason for refusal in refusals}
        assert all(document.text == TEXTS[int(document.id.split("/")[2])] for document in documents)
