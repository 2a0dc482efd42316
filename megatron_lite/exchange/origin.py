"""A model wherever its weights come from: a checkpoint of ours, or what a conversion would take.

What an adapter stands on is found where it was when the adapter was trained, or where the caller says, and must have
the checksum that was noted then (`checkpoint.Base`). So no adapter is added to other weights, or to those that it is
merged in already.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from megatron_lite.checkpoint import (
    Base,
    Checkpoint,
    RunState,
    config_to_resume,
    load,
    load_weights,
    open_checkpoint,
)
from megatron_lite.checkpoint.agreement import together
from megatron_lite.checkpoint.directory import named
from megatron_lite.checkpoint.fill import fill_from
from megatron_lite.checkpoint.fit import (
    NAMED,
    check_adapters,
    check_base,
    check_model,
    check_needed,
    check_used,
    parameters_of,
)
from megatron_lite.checkpoint.index import Index
from megatron_lite.checkpoint.state import Trainable, weights_only
from megatron_lite.config import LoraConfig, ModelConfig
from megatron_lite.errors import DataError, UsageError
from megatron_lite.exchange import hugging_face, ours, peft
from megatron_lite.exchange.checksum import checksum_of, digests_of, model_checksum
from megatron_lite.exchange.gguf import KIND as GGUF
from megatron_lite.exchange.gguf import open_gguf_model
from megatron_lite.exchange.gguf_file import is_gguf
from megatron_lite.exchange.source import HEAD, SCORE, Source
from megatron_lite.mesh import Mesh, mesh_of_one
from megatron_lite.model.freezing import ADAPTERS, Patterns, matches, trained_by
from megatron_lite.model.parameters import is_adapter
from megatron_lite.parallel.pipeline.stage import Stage

Origin = Checkpoint | Source


def open_source(path: Path, average: bool = False, base: str | Path | None = None) -> Source:
    """Recognized by its content, by one process. With `average` a checkpoint's moving average stands for its weights;
    `base` is where what an adapter stands on lies now (None: where it was).

    Raises DataError for what is no model, or not whole, or not one that is known here, and UsageError where there is no
    average.
    """
    with faults_named(path):
        if is_gguf(path):
            _refuse_average(average, path, GGUF)
            return open_gguf_model(path)
        if (path / peft.CONFIG).is_file():
            _refuse_average(average, path, peft.KIND)
            return _open_peft(path, base)
        if (path / hugging_face.CONFIG).is_file():
            _refuse_average(average, path, hugging_face.KIND)
            return hugging_face.open_hugging_face(path)
        if any((path / name).exists() for name in (".metadata", "common.pt", "latest_checkpointed_iteration.txt")):
            raise DataError(
                f"{path} is a checkpoint of Megatron-LM, made of pickles, which are not read; docs/exchange.md has "
                f"the way here, through a Hugging Face directory"
            )
        if named(path):
            mesh = mesh_of_one(torch.device("cpu"))
            checkpoint = open_checkpoint(path, mesh)
            return ours.source_of(checkpoint, _base_beneath(checkpoint, mesh, base), average)
    raise DataError(
        f"{path} is no model: it must be a Hugging Face or PEFT directory, a GGUF file, or a checkpoint or run of ours"
    )


def open_foreign(path: str | Path, base: str | Path | None = None) -> Source | None:
    """What is no checkpoint of ours; None for what may be one, or a run. Raises DataError for what is none of these."""
    return None if named(Path(path)) else open_source(Path(path), base=base)


def open_origin(path: str | Path, mesh: Mesh, base: str | Path | None = None) -> Origin:
    """What a path means; what has an adapter is a source. All ranks call it. Raises DataError for what is none, or not
    whole, and for an adapter whose base is gone, or another one now.
    """
    source = open_foreign(path, base)
    if source is not None:
        return source
    checkpoint = open_checkpoint(path, mesh)
    if checkpoint.index.main.base is None and not any(map(is_adapter, checkpoint.index.main.parameters)):
        return checkpoint
    return ours.source_of(checkpoint, _base_beneath(checkpoint, mesh, base))


def glance(path: str | Path) -> Origin:
    """What a path means, by one process that reads no weights of a checkpoint, nor proves it whole: for its shape, its
    tokenizer, its identity. Raises DataError where no index of it can be read.
    """
    source = open_foreign(path)
    if source is not None:
        return source
    found = config_to_resume(Path(path), str(path))
    if found is None:
        raise DataError(f"{path}: no index of its checkpoints can be read")
    return Checkpoint(found[0], Index.load(found[0]))


def open_base(checkpoint: Checkpoint, recorded: Base, mesh: Mesh, where: str | Path | None = None) -> Origin:
    """What an adapter's checkpoint stands on, `where` it lies now (None: where it was). All ranks call it.

    Raises DataError where it is gone, or another one now.
    """
    path = Path(recorded.path if where is None else where)
    said = f"{checkpoint} stands on {recorded.path} (checksum {recorded.xxh3})"
    with together(mesh, "base.find"):
        if not path.exists():
            raise DataError(f"{said}, and {path} is not there: give its place, a run with checkpoint.init, else --base")
    found = open_origin(path, mesh)
    if isinstance(found, Source) and found.adapter is not None and found.adapter.base is not None:
        found = found.adapter.base  # where a run began from another adapter
    check_base(checkpoint.path, recorded, base_of(found, mesh))
    return found


def base_of(origin: Origin, mesh: Mesh) -> Base:
    """What is noted of a model by what stands on it. All ranks call it; each reads a share of the weights."""
    source = ours.source_of(origin) if isinstance(origin, Checkpoint) else origin
    mine = list(source.parameters)[mesh.rank :: mesh.world.size]
    found: dict[str, str] = {}
    with together(mesh, "base.read"):
        found = digests_of(source.parameters, mine)
    lines = "\n".join(f"{name} {digest}" for name, digest in found.items())
    texts = mesh.words.exchange(lines, "base.checksum")
    digests = dict(line.split() for text in texts for line in text.splitlines())
    return Base(str(origin.path.absolute()), model_checksum(source.model, digests))


def identity_of(origin: Origin) -> str:
    """A checksum of its weights: of all of them, or of an index that has those of their files."""
    return checksum_of(origin) if isinstance(origin, Source) else origin.index.xxh3


def notes_of(origin: Origin) -> Mapping[str, Any]:
    """What a checkpoint says beside its weights, as a reward model's does by which scores are normalized."""
    return origin.notes if isinstance(origin, Source) else origin.index.progress.extra


def load_origin(origin: Origin, model: ModelConfig, stage: Stage, mesh: Mesh, lora: LoraConfig | None = None) -> None:
    """Its weights into a stage, whose blocks have adapters of `lora`: those of the origin, or if it has none as they
    are. Without, its adapter is merged. A model that ends in a scalar takes a policy without its output, and keeps its
    own score.

    Raises DataError on every rank for another model or other adapters.
    """
    missing: Patterns = () if lora is None else ADAPTERS
    if isinstance(origin, Checkpoint):
        more, extra = _by_heads(origin.index.model.get("head", "logits"), model)
        load_weights(origin, model, stage, mesh, (*missing, *more), extra)
        return
    parameters = origin.parameters
    if lora is not None and origin.adapter is not None:
        check_adapters(origin.path, origin.adapter.lora, lora)
        parameters, missing = {**origin.adapter.others, **origin.adapter.matrices}, ()
    more, extra = _by_heads(origin.model.head, model)
    state = weights_only(stage)
    check_model(origin.path, origin.model.model_dump(), model, but=NAMED)
    names = parameters_of(model, state, mesh)
    check_needed(origin.path, parameters, names, (*missing, *more))
    check_used(origin.path, parameters, names, extra)
    with together(mesh, "source.read"):
        fill_from({name: stored.read for name, stored in parameters.items()}, state)


def begin(origin: Origin, trainer: Trainable) -> Base | None:
    """A run's first weights are the origin's; returns what its checkpoints stand on, with `lora`. All ranks call it.

    Raises DataError on every rank for another model, and where something was trained beside the origin's adapter that
    this run keeps as it is: a checkpoint of the adapter alone would lose it.
    """
    config, mesh = trainer.config, trainer.mesh
    load_origin(origin, config.model, trainer.stage, mesh, config.lora)
    if config.lora is None:
        return None
    adapter = origin.adapter if isinstance(origin, Source) else None
    if adapter is None:
        return base_of(origin, mesh)
    if adapter.base is None:
        return None
    if lost := [name for name in adapter.beside if not matches(name, trained_by(config))]:
        raise DataError(
            f"{origin.path} has {lost[0]} trained beside its adapter: train it here too (train.trainable), or merge "
            f"the adapter first (tools/convert_checkpoint.py --to ours --merge)"
        )
    return base_of(adapter.base, mesh)


def resume(checkpoint: Checkpoint, trainer: Trainable, where: str | None) -> tuple[RunState, Base | None]:
    """A run goes on: what an adapter stands on from its base, which lies `where` it is said if it is not where it was,
    and the rest from the checkpoint. All ranks call it; returns what its checkpoints stand on, too.

    Raises DataError as `load` and `open_base` do.
    """
    recorded, config = checkpoint.index.main.base, trainer.config
    if recorded is None:
        return load(checkpoint, trainer), None
    gone = not Path(recorded.path).exists()
    found = open_base(checkpoint, recorded, trainer.mesh, where if gone else None)
    load_origin(found, config.model, trainer.stage, trainer.mesh, config.lora)
    return load(checkpoint, trainer, base=recorded), recorded


@contextmanager
def faults_named(what: Path | str) -> Iterator[None]:
    """A fault of the file system in one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DataError(f"{what}: {error}") from error


def _base_beneath(checkpoint: Checkpoint, mesh: Mesh, where: str | Path | None) -> Origin | None:
    recorded = checkpoint.index.main.base
    return None if recorded is None else open_base(checkpoint, recorded, mesh, where)


def _open_peft(path: Path, where: str | Path | None) -> Source:
    given = where or peft.base_named_in(path)
    if given is None or not Path(given).exists():
        named_there = f"names the base {given}, which is no path here" if given else "names no base"
        raise DataError(f"{path / peft.CONFIG} {named_there}: give its place with --base")
    base = open_source(Path(given))
    if base.adapter is not None:
        raise DataError(
            f"{path} is an adapter on {given}, which is one itself: merge that first (tools/convert_checkpoint.py "
            f"--to ours --merge)"
        )
    recorded = peft.checksum_in(path)
    if recorded is not None:
        check_base(path, Base(str(given), recorded), base_of(base, mesh_of_one(torch.device("cpu"))))
    return peft.open_peft(path, base)


def _refuse_average(average: bool, path: Path, kind: str) -> None:
    if average:
        raise UsageError(f"--ema: {path} is a {kind}; only a checkpoint of ours has an average of its weights")


def _by_heads(head: str, model: ModelConfig) -> tuple[Patterns, Patterns]:
    """(missing, extra) where a model that ends in a scalar begins with a policy's weights."""
    return ((SCORE,), (HEAD,)) if (head, model.head) == ("logits", "scalar") else ((), ())
