"""Real text for measurements and nightly proofs: documentation by package, and the standard library's code.

Packages are downloaded and unpacked below runs/real_text once, never installed. One that cannot be had is left out with
a line on stderr: a machine without apt has the standard library alone.
"""

import gzip
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "runs" / "real_text"
# What the package may be called, since names change with releases, and which of its files are text.
PACKAGES = {
    "python-docs": (r"python3\.[0-9]+-doc", ("*.rst.txt",)),
    "perl-pod": (r"perl-doc", ("*.pod",)),
    "git-docs": (r"git-doc", ("*.txt",)),
    "linux-docs": (r"linux-doc-[0-9.]+", ("*.rst.txt", "*.rst.gz")),
}
APT_OPTIONS = ("-q", "-o", "APT::Sandbox::User=root")  # root's folders are closed to apt's own user


def package_files(name: str) -> list[Path]:
    """The text files of a package in order; none if it cannot be had."""
    pattern, globs = PACKAGES[name]
    target = FOLDER / name
    if not target.is_dir() and not _unpack(pattern, target):
        return []
    return sorted(path for glob in globs for path in target.rglob(glob) if path.is_file())


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


def _unpack(pattern: str, target: Path) -> bool:
    partial = target.with_name(f"{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        package = _newest(pattern)
        subprocess.run(["apt-get", "download", *APT_OPTIONS, package], cwd=partial, check=True, stdout=sys.stderr)
        (archive,) = partial.glob("*.deb")
        subprocess.run(["dpkg", "-x", archive.name, "."], cwd=partial, check=True)
    except (OSError, LookupError, ValueError, subprocess.CalledProcessError) as error:
        print(f"{target.name}: left out: {error}", file=sys.stderr)
        shutil.rmtree(partial)
        return False
    archive.unlink()
    partial.rename(target)
    return True


def _newest(pattern: str) -> str:
    command = ["apt-cache", "search", "--names-only", f"^{pattern}$"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    if not lines:
        raise LookupError(f"no package {pattern} in the package lists")
    names = [line.split(" ", 1)[0] for line in lines]
    return max(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
