"""Index arrays kept on disk, for corpora whose index takes longer to build than to map.

A cached array is found by a digest of what it was computed from: the sizes and modification times of the data set's
files, their checksums where there is a sidecar, and the parameters. A data set written anew has another digest.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from megatron_lite.data.indexed import IndexedDataset, bin_path, idx_path
from megatron_lite.files import publish

VERSION = 1  # raised when a cached array's meaning changes


def cached(
    directory: Path | None,
    name: str,
    dataset: IndexedDataset,
    parameters: dict[str, int],
    build: Callable[[], np.ndarray],
) -> np.ndarray:
    """`build()`, or the array that an earlier call with the same arguments left in `directory` (None: no cache).

    A cached file that is cut short or is no array is built anew. Processes may race here: each publishes a whole file.
    """
    if directory is None:
        return build()
    path = Path(directory) / f"{name}-{_digest(name, dataset, parameters)}.npy"
    if path.is_file():
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError):
            path.unlink(missing_ok=True)
    array = build()
    _save(path, array)
    return array


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for every process: they may build the same array at the same time.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".partial", delete=False) as file:
        np.save(file, array, allow_pickle=False)
    publish(path, Path(file.name))


def _digest(name: str, dataset: IndexedDataset, parameters: dict[str, int]) -> str:
    files = {}
    for path in (bin_path(dataset.prefix), idx_path(dataset.prefix)):
        status = path.stat()
        files[path.suffix] = [status.st_size, status.st_mtime_ns]
    checksums = [dataset.sidecar.bin_xxh3, dataset.sidecar.idx_xxh3] if dataset.sidecar else []
    key = [VERSION, name, str(Path(dataset.prefix).resolve()), files, checksums, parameters]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
