"""Files that appear whole or not at all, also when the machine stops."""

import os
from pathlib import Path


def partial_path(path: str | Path) -> Path:
    """Where a file is written before it is published."""
    return Path(f"{path}.partial")


def publish(path: str | Path, partial: Path | None = None) -> None:
    """Rename `partial` (default: PATH.partial) to PATH once its bytes are on the disk."""
    path, partial = Path(path), partial or partial_path(path)
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
