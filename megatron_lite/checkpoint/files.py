"""Every change that a checkpoint makes to the file system, so that a test can stop the program at each of them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash
from safetensors.torch import save_file
from torch import Tensor

from megatron_lite.files import sync

_PIECE = 1 << 22  # bytes hashed at a time


def make_directory(path: Path) -> None:
    path.mkdir(parents=True)
    sync(path.parent)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, on the disk when this returns."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path)
    path.chmod(mode)  # safetensors makes files that only their owner can read
    sync(path)


def write_json(path: Path, tree: Any) -> None:
    """Compact JSON, on the disk when this returns."""
    path.write_text(canonical(tree), encoding="utf-8")
    sync(path)


def write_bytes(path: Path, content: bytes) -> None:
    """On the disk when this returns."""
    path.write_bytes(content)
    sync(path)


def canonical(tree: Any) -> str:
    """The one way to write a tree down, so that equal trees have equal checksums."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"))


def remove_file(path: Path) -> None:
    path.unlink()


def rename(path: Path, target: Path) -> None:
    """Rename and put the directory's new state on the disk."""
    path.rename(target)
    sync(target.parent)


def remove_tree(path: Path) -> None:
    shutil.rmtree(path)


def checksum(path: Path) -> str:
    """xxh3, 128 bits, hexadecimal."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            state.update(piece)
    return state.hexdigest()


def text_checksum(text: str) -> str:
    return xxhash.xxh3_128(text.encode()).hexdigest()
