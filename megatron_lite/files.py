"""Files that appear whole or not at all, also when the machine stops."""

import os
from pathlib import Path

from megatron_lite.errors import DataError, UsageError


def partial_path(path: str | Path) -> Path:
    """Where a file is written before it is published."""
    return Path(f"{path}.partial")


def publish(path: str | Path, partial: Path | None = None) -> None:
    """Rename `partial` (default: PATH.partial) to PATH once its bytes are on the disk."""
    path, partial = Path(path), partial or partial_path(path)
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def check_output(path: Path) -> None:
    """Before anything is computed for it. Raises UsageError for --output that cannot be a file."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"--output {path}: must be a file in a directory that exists")


def publish_output(path: Path, text: str) -> None:
    """The whole file, or none of it. Raises DataError where the disk refuses it."""
    try:
        partial_path(path).write_text(text, encoding="utf-8")
        publish(path)
    except OSError as error:
        raise DataError(f"--output {path}: {error.strerror}") from None


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
