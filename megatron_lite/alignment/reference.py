"""Log-probabilities of a reference, which a policy is held against: worked out once, before training, and kept.

So no second model lies beside the policy in a run, and a run that is begun again, or with another algorithm's settings,
finds them by what they depend on: the rows, the reference's weights, its shape, the precision.
"""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np

from megatron_lite.alignment.segments import check_finite, of_segments
from megatron_lite.alignment.store import Store
from megatron_lite.checkpoint.agreement import together
from megatron_lite.config import Config
from megatron_lite.files import partial_path, publish
from megatron_lite.mesh import Mesh
from megatron_lite.model.model import Model
from megatron_lite.model.objective import CrossEntropy

VERSION = 1  # raised where the numbers of the same rows and weights change

log = logging.getLogger("megatron_lite")


def reference_of(store: Store, model: Model, identity: str, cache_dir: Path) -> np.ndarray:
    """float64 [samples, segments], for pairs [samples, 2] chosen and rejected: the sum of log p over each segment's
    trained tokens. All ranks call it; rank 0 keeps the file, which all read: `cache_dir` lies where all nodes see it.

    `model` is asked only: one with nothing trained, or the base under an adapter; `identity` is its weights' checksum
    (exchange/origin.py). Raises DataError on every rank for numbers that are not finite, and for a file that cannot be
    written or read.
    """
    config, mesh = model.config, model.mesh
    kept = kept_reference(store, config, identity, cache_dir, mesh)
    if kept is not None:
        return kept
    path = _path_of(store, config, identity, cache_dir)
    found = of_segments(store, model, CrossEntropy(), _sum_of_log_probabilities, "reference log-probabilities")
    with together(mesh, "reference.write"):
        if found is not None:
            check_finite(found, store, "reference's log-probability")
            _write(path, found)
            log.info("reference log-probabilities of %d samples are kept in %s", len(store), path)
    return _read(path, mesh)


def kept_reference(store: Store, config: Config, identity: str, cache_dir: Path, mesh: Mesh) -> np.ndarray | None:
    """The same where it was worked out before, without a model; None elsewhere. All ranks call it."""
    path, words = _path_of(store, config, identity, cache_dir), mesh.words
    there = words.exchange("there" if words.rank == 0 and _is_whole(path, store) else "", "reference.there")[0]
    return _read(path, mesh) if there else None


def _path_of(store: Store, config: Config, identity: str, cache_dir: Path) -> Path:
    return cache_dir / f"reference-{key_of(store, config, identity)}.npy"


def _read(path: Path, mesh: Mesh) -> np.ndarray:
    with together(mesh, "reference.read"):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def key_of(store: Store, config: Config, identity: str) -> str:
    """Another one wherever the numbers may be others. The layout is no part of it."""
    known = [VERSION, store.key, identity, config.model.model_dump(mode="json"), config.train.dtype]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]


def _sum_of_log_probabilities(outputs: np.ndarray) -> float:
    """Of `Outputs`: a label that does not count has 0."""
    return float(outputs[0].sum())


def _is_whole(path: Path, store: Store) -> bool:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return found.dtype == np.float64 and found.ndim == 2 and len(found) == len(store)


def _write(path: Path, found: np.ndarray) -> None:
    """Whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial_path(path).open("wb") as file:
        np.save(file, found)
    publish(path)
