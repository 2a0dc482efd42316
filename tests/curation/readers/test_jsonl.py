"""JSONL: every line becomes a document with an id of its own or is refused by name, wherever the file is cut."""

import gzip
import io
import json
import os
import random
from collections import Counter
from pathlib import Path

import fsspec
import pytest
import zstandard
from support.curation_inputs import read_all

from megatron_lite.curation.config import Format, ReadingConfig, SourceConfig
from megatron_lite.curation.readers import InputFile, Slice, list_files, read
from megatron_lite.errors import MegatronLiteError, UsageError

TEXTS = [f"text {number} " + "wörd " * (number % 50) for number in range(300)]
LINES = [json.dumps({"text": text, "url": f"http://e/{n}", "n": n}).encode() for n, text in enumerate(TEXTS)]
WHOLE = b"\n".join(LINES) + b"\n"


def compressions(data: bytes) -> dict[str, bytes]:
    half = len(data) // 3
    pieces = data[:half], data[half:]
    return {
        ".jsonl": data,
        ".jsonl.gz": gzip.compress(data),
        ".jsonl.zst": zstandard.compress(data),
        ".members.jsonl.gz": b"".join(gzip.compress(piece) for piece in pieces),
        ".frames.jsonl.zst": b"".join(zstandard.compress(piece) for piece in pieces),
    }


@pytest.mark.parametrize("ending", compressions(b""))
def test_documents_have_the_lines_texts_and_the_bytes_where_they_begin_as_ids(tmp_path, ending):
    (tmp_path / f"a{ending}").write_bytes(compressions(WHOLE)[ending])
    documents, refusals = read_all(tmp_path / f"a{ending}", "jsonl", fields={"keep": ["n"]})
    assert [document.text for document in documents] == TEXTS and refusals == []
    for n, document in enumerate(documents):
        assert document.metadata == {"n": n} and document.url == f"http://e/{n}" and document.source == "s"
        source, file, offset = document.id.split("/")
        assert (source, file) == ("s", "0") and WHOLE[int(offset) :].startswith(LINES[n] + b"\n")


@pytest.mark.parametrize("shard_bytes", [1, 7, 1000, 4096])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_any_cut_gives_each_line_once_in_order(tmp_path, shard_bytes, ending):
    (tmp_path / "a.jsonl").write_bytes(ending.encode().join(LINES[:20]))  # without an end of the last line
    whole, _ = read_all(tmp_path / "a.jsonl", "jsonl")
    cut, refusals = read_all(tmp_path / "a.jsonl", "jsonl", shard_bytes)
    assert cut == whole and [document.text for document in cut] == TEXTS[:20] and refusals == []


BAD = {
    b"": "blank_line",
    b"  \t": "blank_line",
    b"{not json": "malformed_json",
    b'{"text": "cut': "malformed_json",
    b'["text"]': "malformed_json",
    b"null": "malformed_json",
    b'{"text": NaN}': "malformed_json",
    b'{"text": "half a pair \\ud800"}': "malformed_json",
    b"[" * 100_000: "malformed_json",
    b'{"txt": "a"}': "no_text",
    b'{"text": null}': "no_text",
    b'{"text": 3}': "text_not_string",
    b'{"text": ["a"]}': "text_not_string",
    b'{"text": ""}': "empty_text",
    b'{"text": " \\n\\t"}': "empty_text",
    b'{"text": "\\u0000"}': "empty_text",
    b'{"text": "\xff\xfe"}': "invalid_utf8",
    b'{"text": "\xed\xa0\x80 a surrogate"}': "invalid_utf8",
    b'{"text": "' + b"x" * 200_000 + b'"}': "too_large",
}


def test_bad_lines_by_the_thousand_are_each_counted_by_name_and_cost_no_good_one(tmp_path):
    order = random.Random(0)
    bad = [order.choice(list(BAD)) for _ in range(3000)]
    lines = [line for pair in zip(bad, [LINES[n % 300] for n in range(3000)], strict=True) for line in pair]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    for shard_bytes in (10**9, 50_000):
        documents, refusals = read_all(tmp_path / "a.jsonl", "jsonl", shard_bytes, {"max_record_bytes": 150_000})
        assert [document.text for document in documents] == [TEXTS[n % 300] for n in range(3000)]
        assert Counter(refusal.reason for refusal in refusals) == Counter(BAD[line] for line in bad)


def test_a_refusal_says_where_it_is_and_shows_a_piece(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n{"text": 12}\n{"text": "\xff bad"}\n')
    _, refusals = read_all(tmp_path / "a.jsonl", "jsonl")
    assert [refusal.where for refusal in refusals] == [f"{tmp_path}/a.jsonl: line at byte {at}" for at in (17, 30)]
    assert refusals[0].detail == "a int" and refusals[0].excerpt == "12"
    assert refusals[1].excerpt == '{"text": "\ufffd bad"}'


def test_invalid_utf8_is_replaced_and_counted_where_asked(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\xffb\xc3 \xef\xbf\xbd"}\n')
    (document,), refusals = read_all(tmp_path / "a.jsonl", "jsonl", reading={"invalid_utf8": "replace"})
    assert document.text == "a\ufffdb\ufffd \ufffd" and document.metadata == {"replaced_characters": 2}
    assert refusals == []


def test_nuls_are_removed_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\\u0000b\\u0000"}\n')
    (document,), _ = read_all(tmp_path / "a.jsonl", "jsonl")
    assert document.text == "ab" and document.metadata == {"removed_nuls": 2}


def test_a_line_of_200_megabytes_is_refused_in_bounded_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(LINES[0] + b'\n{"text": "')
        for _ in range(200):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + LINES[1] + b"\n")
    pid = os.fork()
    if pid == 0:  # a child has a peak of its own
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + 100_000_000,) * 2)
        documents, refusals = read_all(path, "jsonl")
        right = [document.text for document in documents] == TEXTS[:2]
        os._exit(0 if right and [refusal.detail for refusal in refusals] == [DETAIL] else 1)
    assert os.waitpid(pid, 0)[1] == 0


DETAIL = "200,000,012 bytes are above 32,000,000"


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


# zstd gives nothing of a block of 128 kB whose end is not there.
@pytest.mark.parametrize(("ending", "count"), [(".jsonl.gz", 300), (".jsonl.gz", 30_000), (".jsonl.zst", 30_000)])
def test_what_stands_before_the_damage_of_a_truncated_file_is_read_and_the_rest_named(tmp_path, ending, count):
    noise = random.Random(1)
    texts = [str(noise.random()) * 10 for _ in range(count)]
    data = compressions(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts))[ending]
    (tmp_path / f"a{ending}").write_bytes(data[: len(data) * 2 // 3])
    documents, (refusal,) = read_all(tmp_path / f"a{ending}", "jsonl")
    assert count // 4 < len(documents) < count and [document.text for document in documents] == texts[: len(documents)]
    assert refusal.reason == "truncated_file" and f"a{ending}: after the line at byte" in refusal.where


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
def test_what_is_not_compressed_as_its_name_says_is_named(tmp_path, ending):
    (tmp_path / f"a{ending}").write_bytes(WHOLE)
    documents, (refusal,) = read_all(tmp_path / f"a{ending}", "jsonl")
    assert documents == [] and refusal.reason == "damaged_file"


def test_files_are_numbered_in_the_order_of_paths_and_names_and_counted_once(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", "z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINES[0])
    source = SourceConfig(
        kind="jsonl", paths=(f"{tmp_path}/z.txt", f"{tmp_path}/*.jsonl", str(tmp_path)), exclude=("deep/*",)
    )
    files = list_files("s", source)
    assert [(file.number, file.name) for file in files] == [(0, "z.txt"), (1, "a.jsonl"), (2, "b.jsonl")]


def test_a_path_where_nothing_is_ends_in_one_line_unless_it_is_not_required(tmp_path):
    with pytest.raises(UsageError, match=r"sources\.s\.paths: nothing is at .*/\*\.jsonl"):
        list_files("s", SourceConfig(kind="jsonl", paths=(f"{tmp_path}/*.jsonl",)))
    assert list_files("s", SourceConfig(kind="jsonl", paths=(f"{tmp_path}/*.jsonl",), required=False)) == []


def test_a_path_with_a_globs_signs_in_it_is_itself(tmp_path):
    for folder in ("a[1]", "a1"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_bytes(LINES[0])
    for path in (tmp_path / "a[1]", tmp_path / "a[1]/x.jsonl"):
        (file,) = list_files("s", SourceConfig(kind="jsonl", paths=(str(path),)))
        assert file.path == str(tmp_path / "a[1]/x.jsonl")


def test_any_fsspec_url_can_be_read():
    with fsspec.open("memory://bucket/a.jsonl.gz", "wb") as file:
        file.write(gzip.compress(WHOLE))
    with fsspec.open("memory://bucket/b.jsonl", "wb") as file:
        file.write(WHOLE)
    documents, refusals = read_all("memory://bucket/*.jsonl*", "jsonl", 5000)
    assert [document.text for document in documents] == TEXTS * 2 and refusals == []
    assert {document.id.split("/")[1] for document in documents} == {"0", "1"}


def test_a_file_that_is_gone_or_shut_is_named(tmp_path):
    gone = Slice(InputFile("s", 0, str(tmp_path / "gone.jsonl"), "gone.jsonl", 3, ""), 3)
    (refusal,) = read(gone, Format("jsonl"), ReadingConfig())
    assert (refusal.reason, refusal.where) == ("unreadable_file", str(tmp_path / "gone.jsonl"))


class Failing(io.BytesIO):
    """A file whose second block cannot be had."""

    def read(self, size=-1):
        if self.tell():
            raise TimeoutError("no answer")
        return super().read(100)

    def open(self):
        return self


def test_a_disk_or_network_that_fails_ends_the_run_and_is_not_taken_for_a_damaged_file(monkeypatch):
    with fsspec.open("memory://failing/a.jsonl.gz", "wb") as file:
        file.write(gzip.compress(WHOLE))
    monkeypatch.setattr(fsspec, "open", lambda path, mode: Failing(gzip.compress(WHOLE)))
    with pytest.raises(MegatronLiteError, match=r"a\.jsonl\.gz: reading failed: TimeoutError: no answer"):
        read_all("memory://failing/a.jsonl.gz", "jsonl")
