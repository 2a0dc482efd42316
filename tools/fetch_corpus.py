"""Fetch real text by package, as the packages have it; curation (tools/curate_data.py) makes a corpus of it.

python tools/fetch_corpus.py --output-dir runs/quickstart/raw

Documentation comes from Debian or Ubuntu packages (downloaded and unpacked, never installed; no root needed where the
package lists are current), code from this Python's standard library, more from `--input` files. Each source has a
folder of its own; one that stands is not fetched again, one that cannot be had is left out with a line.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from megatron_lite.errors import DataError, UsageError, run_command
from megatron_lite.files import partial_path

# What a package of documentation may be called, since names change with releases.
PACKAGES = {
    "python-docs": r"python3\.[0-9]+-doc",
    "perl-pod": r"perl-doc",
    "postgresql-docs": r"postgresql-doc-[0-9]+",
    "git-docs": r"git-doc",
}
MORE_PACKAGES = {"sklearn-docs": r"python-sklearn-doc", "linux-docs": r"linux-doc-[0-9.]+"}  # 90 MB to download
STDLIB, OWN = "python-stdlib", "own"
# No sandbox user, who could not write into the working directory of root.
APT_OPTIONS = ("-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::http::Timeout=30", "-o", "Acquire::Retries=2")


def find_package(pattern: str) -> str | None:
    """The package of the newest release whose whole name matches, or None."""
    command = ["apt-cache", "search", "--names-only", f"^{pattern}$"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names = [line.split(" ", 1)[0] for line in lines]
    return max(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)], default=None)


def update_package_lists() -> None:
    """Bring in package lists where there are none; only root can."""
    if any(find_package(pattern) for pattern in PACKAGES.values()):
        return
    if os.geteuid() != 0:
        _say("package lists: none here, and only root can fetch them (apt-get update)")
        return
    result = subprocess.run(["apt-get", "update", *APT_OPTIONS], capture_output=True, text=True)
    if result.returncode:
        _say(f"package lists: apt-get update failed: {_last_line(result.stderr)}")


def unpack_package(name: str, pattern: str, directory: Path) -> Path | None:
    """The package unpacked in a folder `name` of the directory, downloaded if it is not there.

    None, after a line why, if it cannot be.
    """
    target = directory / name
    if target.exists():
        return target
    package = find_package(pattern)
    if package is None:
        _say(f"{name}: skipped, no package {pattern} in the package lists")
        return None
    partial = _empty_folder(target)
    _say(f"{name}: downloading {package}")
    result = subprocess.run(["apt-get", "download", *APT_OPTIONS, package], cwd=partial, capture_output=True, text=True)
    if result.returncode:
        _say(f"{name}: skipped, {package} cannot be downloaded: {_last_line(result.stderr)}")
        return None
    for archive in partial.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive.name, "."], cwd=partial, check=True)
        archive.unlink()
    partial.rename(target)
    return target


def copy_stdlib(root: Path, directory: Path) -> None:
    """The standard library's modules, its tests included; what was installed beside it is not part of it."""
    target = directory / STDLIB
    if target.exists():
        return
    partial = _empty_folder(target)
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not {"site-packages", "dist-packages"} & set(name.parts):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, partial / name)
    partial.rename(target)


def copy_inputs(paths: Sequence[Path], directory: Path) -> None:
    """Files of one's own, always as they are now. Raises UsageError where two have one name."""
    if len({path.name for path in paths}) < len(paths):
        raise UsageError("--input: two files have the same name")
    partial = _empty_folder(directory / OWN)
    for path in paths:
        shutil.copyfile(path, partial / path.name)
    shutil.rmtree(directory / OWN, ignore_errors=True)
    partial.rename(directory / OWN)


def table(directory: Path) -> str:
    """Sources with their files, in lines of text."""
    lines = [f"{'source':<18}{'files':>8}{'MB':>10}"]
    for folder in sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.endswith(".partial")):
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        lines.append(f"{folder.name:<18}{len(sizes):>8,}{sum(sizes) / 1e6:>10.1f}")
    return "\n".join(lines)


def _empty_folder(target: Path) -> Path:
    """Where a folder is filled before it has its name."""
    partial = partial_path(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    packages = [*PACKAGES, *MORE_PACKAGES]
    parser.add_argument(
        "--packages", nargs="*", choices=packages, default=list(PACKAGES), help=f"default: {' '.join(PACKAGES)}"
    )
    parser.add_argument("--no-stdlib", action="store_true", help="leave the standard library out")
    parser.add_argument(
        "--stdlib", type=Path, metavar="DIR", default=Path(sysconfig.get_paths()["stdlib"]), help="default: %(default)s"
    )
    parser.add_argument("--input", type=Path, nargs="*", default=[], metavar="F.jsonl", help="documents of your own")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_arguments(argv)
    missing = [path for path in options.input if not path.is_file()]
    if missing:
        raise UsageError(f"--input {missing[0]}: no such file")
    directory = options.output_dir
    directory.mkdir(parents=True, exist_ok=True)
    packages = options.packages if shutil.which("apt-get") and shutil.which("dpkg") else []
    if options.packages and not packages:
        _say("no apt-get and dpkg here: only the standard library and --input files")
    if any(not (directory / name).exists() for name in packages):
        update_package_lists()
    for name in packages:
        unpack_package(name, {**PACKAGES, **MORE_PACKAGES}[name], directory)
    if not options.no_stdlib:
        copy_stdlib(options.stdlib, directory)
    if options.input:
        copy_inputs(options.input, directory)
    if not any(path.is_dir() for path in directory.iterdir()):
        raise DataError(f"{directory}: no source could be had")
    print(table(directory))


if __name__ == "__main__":
    run_command(main)
