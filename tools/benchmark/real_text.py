"""Real text for measurements and nightly proofs: documentation by package, and the standard library's code.

tools/fetch_corpus.py fetches the packages to runs/real_text once. One that cannot be had is left out with a line on
stderr: a machine without apt has the standard library alone.
"""

import gzip
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

TOOL = Path(__file__).parents[1] / "fetch_corpus.py"
FOLDER = Path(__file__).parents[2] / "runs" / "real_text"
# Which files of a package are text.
PACKAGES = {
    "python-docs": ("*.rst.txt",),
    "perl-pod": ("*.pod",),
    "git-docs": ("*.txt",),
    "linux-docs": ("*.rst.txt", "*.rst.gz"),
}


def package_files(name: str) -> list[Path]:
    """The text files of a package in order; none if it cannot be had."""
    if not (FOLDER / name).is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        # It fails where nothing could be had, after a line that says why.
        command = [sys.executable, str(TOOL), "--output-dir", str(FOLDER), "--no-stdlib", "--packages", name]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    return sorted(path for glob in PACKAGES[name] for path in (FOLDER / name).rglob(glob) if path.is_file())


def read_text(path: Path) -> str | None:
    """The text of a file, plain or .gz; None if it is not UTF-8."""
    content = path.read_bytes()
    try:
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except UnicodeDecodeError:
        return None


def stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)


def real_texts() -> Iterator[str]:
    """All documents that can be had here, a few of each source in turn so that any beginning is a mixture."""
    sources = [package_files(name) for name in PACKAGES] + [stdlib_files()]
    places = [(i / len(files), source, path) for source, files in enumerate(sources) for i, path in enumerate(files)]
    for _, _, path in sorted(places):
        text = read_text(path)
        if text:
            yield text


def first_megabytes(texts: Iterable[str], megabytes: float) -> list[str]:
    chosen, held = [], 0
    for text in texts:
        if held >= megabytes * 1e6:
            break
        chosen.append(text)
        held += len(text.encode())
    return chosen


def megabytes_of(texts: Sequence[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6
