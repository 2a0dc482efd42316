"""Fetch real text by package and write it as train.jsonl and valid.jsonl, one document {id, source, text} a line.

python tools/fetch_corpus.py --output-dir runs/quickstart/corpus

Documentation comes from Debian or Ubuntu packages (downloaded and unpacked, never installed; no root needed where
the package lists are current), code from this Python's standard library, more from `--input` files. Exact
duplicates are dropped. The documents whose text has the smallest hashes are held out in valid.jsonl, whole, so that
none of them is trained on. statistics.json is written last; where it stands for the same options, nothing is done
again.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from resiliparse.extract.html2text import extract_plain_text
from tqdm import tqdm

from megatron_lite.errors import DataError, UsageError, run_face
from megatron_lite.files import partial_path, publish


@dataclass(frozen=True)
class Document:
    id: str
    source: str
    text: str | None  # None: the file is not UTF-8


@dataclass(frozen=True)
class Source:
    """A package of documentation: what it may be called, which of its files are text, and how they are read."""

    name: str
    package: str  # a regular expression, since names change with releases
    files: str
    read: Callable[[Path], str]


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def read_html(path: Path) -> str:
    """The page's text, its lists, tables and code laid out, without the navigation around it."""
    skipped = (".navheader", ".navfooter")
    return extract_plain_text(path.read_text(encoding="utf-8"), main_content=True, skip_elements=skipped)


PACKAGES = (
    Source(
        "python-docs", r"python3\.[0-9]+-doc", "usr/share/doc/python3.[0-9][0-9]/html/_sources/**/*.rst.txt", read_text
    ),
    Source("perl-pod", r"perl-doc", "usr/share/perl/**/*.pod", read_text),
    Source("postgresql-docs", r"postgresql-doc-[0-9]+", "usr/share/doc/postgresql-doc-*/html/*.html", read_html),
    Source("git-docs", r"git-doc", "usr/share/doc/git-doc/**/*.txt", read_text),
)
# No sandbox user, who could not write into the working directory of root.
APT_OPTIONS = ("-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::http::Timeout=30", "-o", "Acquire::Retries=2")
KIND = {source.name: "prose" for source in PACKAGES} | {"python-stdlib": "code"}


def find_package(pattern: str) -> str | None:
    """The package of the newest release whose whole name matches, or None."""
    command = ["apt-cache", "search", "--names-only", f"^{pattern}$"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names = [line.split(" ", 1)[0] for line in lines]
    return max(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)], default=None)


def update_package_lists() -> None:
    """Bring in package lists where there are none; only root can."""
    if any(find_package(source.package) for source in PACKAGES):
        return
    if os.geteuid() != 0:
        _say("package lists: none here, and only root can fetch them (apt-get update)")
        return
    result = subprocess.run(["apt-get", "update", *APT_OPTIONS], capture_output=True, text=True)
    if result.returncode:
        _say(f"package lists: apt-get update failed: {_last_line(result.stderr)}")


def unpack_package(source: Source, directory: Path) -> Path | None:
    """The package unpacked in `directory`, downloaded if it is not there; None, after a line why, if it cannot be."""
    target = directory / source.name
    if target.exists():
        return target
    package = find_package(source.package)
    if package is None:
        _say(f"{source.name}: skipped, no package {source.package} in the package lists")
        return None
    partial = partial_path(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    result = subprocess.run(["apt-get", "download", *APT_OPTIONS, package], cwd=partial, capture_output=True, text=True)
    if result.returncode:
        _say(f"{source.name}: skipped, {package} cannot be downloaded: {_last_line(result.stderr)}")
        return None
    for archive in partial.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive.name, "."], cwd=partial, check=True)
        archive.unlink()
    partial.rename(target)
    return target


def packaged_documents(source: Source, root: Path) -> Iterator[Document]:
    for path in sorted(root.glob(source.files)):
        yield _document(source.name, path, root, source.read)


def stdlib_documents(root: Path) -> Iterator[Document]:
    """The standard library's modules, its tests included; what was installed beside it is not part of it."""
    for path in sorted(root.rglob("*.py")):
        if not {"site-packages", "dist-packages"} & set(path.relative_to(root).parts):
            yield _document("python-stdlib", path, root, read_text)


def input_documents(path: Path) -> Iterator[Document]:
    """Documents of a JSONL file with a `text` field. Raises DataError naming the file and the line."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                name, text = str(record.get("id", f"{path.name}:{number}")), str(record["text"])
                text.encode()  # fails on half a surrogate pair, which JSON can hold and UTF-8 cannot
            except (ValueError, KeyError, AttributeError) as error:
                raise DataError(f"{path} line {number}: must be a JSON object with a text: {error!r}") from None
            yield Document(name, path.name, text)


def write_corpus(documents: Iterator[Document], output_dir: Path, valid_bytes: int) -> dict:
    """Write train.jsonl and valid.jsonl, the first of equal documents only. Returns counts by source and by file.

    The same documents in the same order give the same files, byte for byte. Raises DataError where validation would
    take more than half of the text.
    """
    sources: dict[str, Counter] = {}
    sizes: dict[bytes, int] = {}  # of the text in bytes, by its hash, in the order of the documents
    together = partial_path(output_dir / "documents.jsonl")
    with together.open("wb") as file:
        for document in documents:
            counts, text = sources.setdefault(document.source, Counter()), document.text
            if text is None or not text.strip():
                counts["not_utf8" if text is None else "empty"] += 1
                continue
            encoded = text.encode()
            digest = hashlib.sha256(encoded).digest()
            if digest in sizes:
                counts["duplicates"] += 1
                continue
            sizes[digest] = len(encoded)
            counts.update(documents=1, bytes=len(encoded))
            record = {"id": document.id, "source": document.source, "text": text}
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    if sum(sizes.values()) < 2 * valid_bytes:
        raise DataError(f"{output_dir}: {sum(sizes.values()):,} bytes of text, too few to hold out {valid_bytes:,}")
    return {
        "sources": {name: dict(counts) for name, counts in sources.items()},
        "splits": _split(together, sizes, choose_valid(sizes, valid_bytes), output_dir),
    }


def choose_valid(sizes: dict[bytes, int], valid_bytes: int) -> set[bytes]:
    """The documents of the smallest hashes, just as many as hold `valid_bytes` together."""
    chosen, held = set(), 0
    for digest in sorted(sizes):
        if held >= valid_bytes:
            break
        chosen.add(digest)
        held += sizes[digest]
    return chosen


def _split(together: Path, sizes: dict[bytes, int], valid: set[bytes], output_dir: Path) -> dict[str, dict]:
    """Deal the lines of a file, in the order of `sizes`, to valid.jsonl and train.jsonl; the file goes."""
    counts = {"train": Counter(), "valid": Counter()}
    paths = {split: output_dir / f"{split}.jsonl" for split in counts}
    with (
        together.open("rb") as lines,
        partial_path(paths["train"]).open("wb") as train_file,
        partial_path(paths["valid"]).open("wb") as valid_file,
    ):
        for line, (digest, size) in zip(lines, sizes.items(), strict=True):
            split, file = ("valid", valid_file) if digest in valid else ("train", train_file)
            file.write(line)
            counts[split].update(documents=1, bytes=size)
    for path in paths.values():
        publish(path)
    together.unlink()
    return {split: dict(count) for split, count in counts.items()}


def collect(options: argparse.Namespace) -> Iterator[Document]:
    packages = options.packages if shutil.which("apt-get") and shutil.which("dpkg") else []
    if options.packages and not packages:
        _say("no apt-get and dpkg here: only the standard library and --input files")
    if packages:
        update_package_lists()
    for source in PACKAGES:
        root = unpack_package(source, options.output_dir / "packages") if source.name in packages else None
        if root is not None:
            _say(f"{source.name}: reading {source.files}")
            yield from packaged_documents(source, root)
    if not options.no_stdlib:
        _say(f"python-stdlib: reading {options.stdlib}")
        yield from stdlib_documents(options.stdlib)
    for path in options.input:
        _say(f"{path.name}: reading")
        yield from input_documents(path)


def table(statistics: dict) -> str:
    """Sources and files with what they hold and what was dropped, in lines of text."""
    lines = [f"{'source':<18}{'kind':<7}{'documents':>10}{'MB':>8}{'duplicates':>12}{'empty':>7}{'not UTF-8':>11}"]
    for name, counts in statistics["sources"].items():
        dropped = [counts.get(reason, 0) for reason in ("duplicates", "empty", "not_utf8")]
        lines.append(_row(name, KIND.get(name, "own"), counts) + "{:>12,}{:>7,}{:>11,}".format(*dropped))
    lines += [_row(name, "", counts) for name, counts in statistics["splits"].items()]
    return "\n".join(lines)


def _row(name: str, kind: str, counts: dict) -> str:
    return f"{name:<18}{kind:<7}{counts.get('documents', 0):>10,}{counts.get('bytes', 0) / 1e6:>8.1f}"


def _document(source: str, path: Path, root: Path, read: Callable[[Path], str]) -> Document:
    name = f"{source}/{path.relative_to(root)}"
    try:
        return Document(name, source, read(path))
    except UnicodeDecodeError:
        return Document(name, source, None)


def _say(line: str) -> None:
    """A line on stderr that leaves a progress bar whole."""
    tqdm.write(line, file=sys.stderr)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    names = [source.name for source in PACKAGES]
    parser.add_argument("--packages", nargs="*", choices=names, default=names, help="default: all of them")
    parser.add_argument("--no-stdlib", action="store_true", help="leave the standard library out")
    parser.add_argument(
        "--stdlib", type=Path, metavar="DIR", default=Path(sysconfig.get_paths()["stdlib"]), help="default: %(default)s"
    )
    parser.add_argument("--input", type=Path, nargs="*", default=[], metavar="F.jsonl", help="documents of your own")
    parser.add_argument("--valid-bytes", type=int, default=900_000, metavar="N", help="text to hold out (%(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_arguments(argv)
    if options.valid_bytes < 1:
        raise UsageError(f"--valid-bytes {options.valid_bytes}: must be at least 1")
    missing = [path for path in options.input if not path.is_file()]
    if missing:
        raise UsageError(f"--input {missing[0]}: no such file")
    path = options.output_dir / "statistics.json"
    asked = {name: str(value) for name, value in vars(options).items()}
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["options"] == asked:
        print(f"{options.output_dir} stands\n{table(json.loads(path.read_text(encoding='utf-8')))}")
        return
    options.output_dir.mkdir(parents=True, exist_ok=True)
    documents = tqdm(collect(options), desc="documents", unit="", disable=None)
    statistics = {"options": asked, **write_corpus(documents, options.output_dir, options.valid_bytes)}
    partial_path(path).write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")
    publish(path)
    print(table(statistics))


if __name__ == "__main__":
    run_face(main)
