"""Index arrays kept on disk, for corpora whose index takes longer to build than to map.

A cached array is found by a digest of what it was computed from: the data set's fingerprint (sizes, times of change,
checksums) and the parameters. A data set written anew has another digest.
"""

import errno
import fcntl
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from megatron_lite.files import publish

VERSION = 2  # raised when a cached array's meaning changes
WORTH_KEEPING = 1 << 20  # elements; to go through fewer takes less time than to write, sync and find a file
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)

log = logging.getLogger("megatron_lite")


def cached(
    directory: Path | None,
    name: str,
    fingerprint: str,
    parameters: dict[str, int],
    elements: int,
    build: Callable[[], np.ndarray],
) -> np.ndarray:
    """`build()`, or the array that an earlier call with the same arguments left in `directory` (None: no cache).

    Nothing is kept where `build` goes through few `elements`. Of several processes, on one node or on all that share
    the directory, the first builds and the others wait for it. A cached file that is cut short or is no array is built
    anew.
    """
    if directory is None or elements < WORTH_KEEPING:
        return build()
    key = json.dumps([VERSION, name, fingerprint, parameters], sort_keys=True)
    path = Path(directory) / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    found = _load(path)
    if found is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(path):
            found = _load(path)  # another process may have built it while this one waited
            if found is None:
                _save(path, build())
                found = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def _load(path: Path) -> np.ndarray | None:
    """The array, mapped; None where there is none or it is not whole."""
    if not path.is_file():
        return None
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):
        return None


def _save(path: Path, array: np.ndarray) -> None:
    # A name of its own for every process: where there are no locks, several may build the same array.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".partial", delete=False) as file:
        np.save(file, array, allow_pickle=False)
    publish(path, Path(file.name))


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time; a lock ends with the process that holds it.

    On a file system without locks every process goes on: each publishes a whole file, so the result is the same.
    """
    lock = path.with_suffix(".lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log.warning("%s: no locks on this file system; every process builds its own index", lock.parent)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
