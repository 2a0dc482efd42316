"""Raw text from local files and packages, and what is said about a machine without packages."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools.fetch_corpus import PACKAGES, find_package, unpack_package

TOOL = Path(__file__).parents[2] / "tools" / "fetch_corpus.py"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A small standard library, and someone else's package in it."""
    root = tmp_path / "lib"
    files = {"a.py": "A = 1\n", "deep/b.py": "B = 2\n", "notes.txt": "no code", "site-packages/other.py": "OTHER = 1\n"}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def fetch(output: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), "--output-dir", str(output), "--packages", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_standard_librarys_modules_are_copied_and_nothing_else(library: Path, tmp_path: Path) -> None:
    result = fetch(tmp_path / "out", "--stdlib", library)
    assert result.returncode == 0, result.stderr
    copied = tmp_path / "out/python-stdlib"
    found = {str(path.relative_to(copied)): path.read_text() for path in copied.rglob("*") if path.is_file()}
    assert found == {"a.py": "A = 1\n", "deep/b.py": "B = 2\n"}
    assert "python-stdlib" in result.stdout


def test_a_second_call_does_nothing_but_bring_inputs_up_to_date(library: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"text": "mine"}\n')
    fetch(tmp_path / "out", "--stdlib", library, "--input", own)
    before = (tmp_path / "out/python-stdlib").stat().st_mtime_ns
    own.write_text('{"text": "mine, and newer"}\n')
    fetch(tmp_path / "out", "--stdlib", library, "--input", own)
    assert (tmp_path / "out/python-stdlib").stat().st_mtime_ns == before
    assert (tmp_path / "out/own/own.jsonl").read_text() == '{"text": "mine, and newer"}\n'


def test_bad_arguments_and_nothing_fetched_have_their_exit_codes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for folder in (tmp_path, tmp_path / "a"):
        (folder / "own.jsonl").write_text("{}")
    assert fetch(tmp_path / "out", "--no-stdlib", "--input", tmp_path / "missing.jsonl").returncode == 2
    two = fetch(tmp_path / "out", "--no-stdlib", "--input", tmp_path / "own.jsonl", tmp_path / "a/own.jsonl")
    assert two.returncode == 2 and "two files have the same name" in two.stderr
    assert fetch(tmp_path / "out", "--no-stdlib").returncode == 3


def test_without_apt_the_standard_library_alone_must_do_and_a_line_says_so(library: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "--output-dir", str(tmp_path / "out"), "--stdlib", str(library)]
    result = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert "no apt-get and dpkg here: only the standard library" in result.stderr
    assert (tmp_path / "out/python-stdlib/a.py").exists()


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
    return tmp_path / "raw"


def test_the_newest_release_is_unpacked_once(apt: Path) -> None:
    assert find_package(PACKAGES["postgresql-docs"]) == "postgresql-doc-15"
    root = unpack_package("postgresql-docs", PACKAGES["postgresql-docs"], apt)
    assert root == unpack_package("postgresql-docs", PACKAGES["postgresql-docs"], apt) == apt / "postgresql-docs"
    assert (root / "usr/share/doc/postgresql-doc-15/html/a.html").read_text() == "<p>page</p>\n"
    assert not list(root.glob("*.deb"))


def test_a_package_that_is_not_there_is_skipped_with_a_line(apt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unpack_package("perl-pod", PACKAGES["perl-pod"], apt) is None
    assert "perl-pod: skipped, no package perl-doc" in capsys.readouterr().err
