"""Files that appear whole or not at all, also when the machine stops."""

import os
from pathlib import Path


def partial_path(path: str | Path) -> Path:
    """Where a file is written before it is published."""
    return Path(f"{path}.partial")


def publish(path: str | Path, partial: Path | None = None) -> None:
    """Rename `partial` (default: PATH.partial) to PATH once its bytes are on the disk."""
    path, partial = Path(path), partial or partial_path(path)
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
