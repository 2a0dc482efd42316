"""The corpus from local files: duplicates, the split, and what is said about a machine without packages."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.fetch_corpus import PACKAGES, Document, find_package, packaged_documents, read_html, unpack_package

VALID_BYTES = 400  # about 33 of the fixture's documents
TOOL = Path(__file__).parents[2] / "tools" / "fetch_corpus.py"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A small standard library with a duplicate, an empty module, a Latin-1 module, and someone else's package."""
    root = tmp_path / "lib"
    files = {f"module_{number:03}.py": f"VALUE = {number}\n" for number in range(200)}
    files |= {"copy.py": "VALUE = 7\n", "empty.py": " \n", "site-packages/other.py": "OTHER = 1\n"}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "latin.py").write_bytes(b"NAME = '\xe9'\n")
    return root


def fetch(output: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    options = ["--output-dir", str(output), "--valid-bytes", str(VALID_BYTES), "--packages"]
    command = [sys.executable, str(TOOL), *options, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_distinct_document_is_in_one_file_once(library: Path, tmp_path: Path) -> None:
    result = fetch(tmp_path / "out", "--stdlib", library)
    assert result.returncode == 0, result.stderr
    train, valid = read(tmp_path / "out/train.jsonl"), read(tmp_path / "out/valid.jsonl")
    texts = [document["text"] for document in train + valid]
    assert sorted(texts) == sorted(f"VALUE = {number}\n" for number in range(200))
    assert [document["id"] for document in train] == sorted(document["id"] for document in train)
    statistics = json.loads((tmp_path / "out/statistics.json").read_text())
    counts = {"documents": 200, "bytes": sum(map(len, texts)), "duplicates": 1, "empty": 1, "not_utf8": 1}
    assert statistics["sources"]["python-stdlib"] == counts
    for split, documents in (("train", train), ("valid", valid)):
        size = sum(len(document["text"]) for document in documents)
        assert statistics["splits"][split] == {"documents": len(documents), "bytes": size}


def test_the_documents_with_the_smallest_hashes_are_held_out(library: Path, tmp_path: Path) -> None:
    fetch(tmp_path / "out", "--stdlib", library)
    valid = [document["text"] for document in read(tmp_path / "out/valid.jsonl")]
    texts = [f"VALUE = {number}\n" for number in range(200)]
    by_hash = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    assert set(valid) == set(by_hash[: len(valid)])
    assert len("".join(valid)) >= VALID_BYTES > len("".join(by_hash[: len(valid) - 1]))


def test_the_same_sources_give_the_same_bytes_and_a_second_call_does_nothing(library: Path, tmp_path: Path) -> None:
    first = fetch(tmp_path / "a", "--stdlib", library)
    fetch(tmp_path / "b", "--stdlib", library)
    for name in ("train.jsonl", "valid.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    before = (tmp_path / "a/train.jsonl").stat().st_mtime_ns
    again = fetch(tmp_path / "a", "--stdlib", library)
    assert (tmp_path / "a/train.jsonl").stat().st_mtime_ns == before
    assert "stands" in again.stdout
    assert again.stdout.endswith(first.stdout)


@pytest.mark.parametrize("line", ['{"body": "no text"}', '["text"]', '{"text": "half a pair \\ud800"}', "{"])
def test_a_bad_line_of_ones_own_input_is_named(line: str, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text(f'{{"text": "fine"}}\n{line}\n')
    result = fetch(tmp_path / "out", "--no-stdlib", "--input", own)
    assert result.returncode == 3
    assert "own.jsonl line 2" in result.stderr
    assert not (tmp_path / "out/train.jsonl").exists()


def test_bad_arguments_and_an_empty_corpus_have_their_exit_codes(tmp_path: Path) -> None:
    assert fetch(tmp_path / "out", "--no-stdlib", "--valid-bytes", "0").returncode == 2
    assert fetch(tmp_path / "out", "--no-stdlib", "--input", tmp_path / "missing.jsonl").returncode == 2
    assert fetch(tmp_path / "out", "--no-stdlib").returncode == 3


def test_without_apt_the_standard_library_alone_must_do_and_a_line_says_so(library: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(TOOL),
        "--output-dir",
        str(tmp_path / "out"),
        "--stdlib",
        str(library),
        "--valid-bytes",
        "400",
    ]
    result = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert "no apt-get and dpkg here: only the standard library" in result.stderr
    assert len(read(tmp_path / "out/train.jsonl")) > 100


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt and a dpkg of two shell scripts: two releases of one package, nothing else."""
    programs = tmp_path / "bin"
    programs.mkdir()
    scripts = {
        "apt-cache": 'case "$3" in *postgresql*) echo "postgresql-doc-9 - old"; echo "postgresql-doc-15 - new";; esac',
        "apt-get": 'for name; do :; done; touch "$name.deb"',
        "dpkg": 'd=usr/share/doc/${2%.deb}/html; mkdir -p $d; echo "<p>page</p>" > $d/a.html',
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return tmp_path / "packages"


def test_the_newest_release_is_unpacked_once_and_read(apt: Path) -> None:
    source = next(source for source in PACKAGES if source.name == "postgresql-docs")
    assert find_package(source.package) == "postgresql-doc-15"
    root = unpack_package(source, apt)
    assert root == unpack_package(source, apt)
    assert list(packaged_documents(source, root)) == [
        Document("postgresql-docs/usr/share/doc/postgresql-doc-15/html/a.html", "postgresql-docs", "page")
    ]


def test_a_package_that_is_not_there_is_skipped_with_a_line(apt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = next(source for source in PACKAGES if source.name == "perl-pod")
    assert unpack_package(source, apt) is None
    assert "perl-pod: skipped, no package perl-doc" in capsys.readouterr().err


def test_html_becomes_its_text_without_the_navigation(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<html><head><title>T</title></head><body><div class='navheader'>Prev Next</div>"
        "<h1>INSERT</h1><p>Adds &lt;rows&gt;.</p><pre>a\n  b</pre><div class='navfooter'>Home</div></body></html>"
    )
    text = read_html(page)
    assert [line for line in text.splitlines() if line] == ["INSERT", "Adds <rows>.", "a", "  b"]
