"""From a path to a model that can be asked: on any tensor x pipeline layout, with the tokenizer that belongs to it.

step_N, a run, a Hugging Face directory, a GGUF file -> configuration -> ranks that meet -> weights -> LanguageModel
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from megatron_lite.checkpoint import config_to_resume
from megatron_lite.config import Config, Resolved, config_from_tree, resolve
from megatron_lite.config.load import apply_overrides
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.device import DeviceKind
from megatron_lite.errors import DataError, UsageError
from megatron_lite.exchange.origin import Origin, load_origin, open_foreign, open_origin
from megatron_lite.exchange.ours import config_of
from megatron_lite.exchange.source import Source
from megatron_lite.inference.model import LanguageModel
from megatron_lite.inference.text import find_tokenizer
from megatron_lite.kernels.choice import kernels_of
from megatron_lite.launch import end_with_launcher, joined_world
from megatron_lite.mesh import Mesh, MeshShape, build_mesh
from megatron_lite.model.build import build_stage, choice_of, undivided
from megatron_lite.model.freezing import NOTHING
from megatron_lite.model.model import schedule_of
from megatron_lite.parallel.pipeline.stage import hold
from megatron_lite.parallel.words import Words
from megatron_lite.place import find_place

# Every replica reads all weights of its place, so none are gathered, and none are there twice.
LAYOUT = {"zero_stage": 0, "zero_regather": "step", "sequence": False}
SECTIONS = ("parallel.", "kernels.")  # of what a command may set
TIMEOUT = timedelta(minutes=10)  # of a message between ranks


@dataclass(frozen=True)
class Asked:
    """What a command line says of the model: `path` and `tokenizer` as a user gives them, `dtype` to compute in (None:
    the one it was trained in), `key=value` of its layout and kernels, `base` where what an adapter stands on
    lies now (None: where it was).
    """

    path: str
    overrides: tuple[str, ...] = ()
    dtype: str | None = None
    device: DeviceKind = "auto"
    tokenizer: str | None = None
    base: str | None = None


@dataclass(frozen=True)
class Opened:
    """A model that is held for good, its tokenizer, words with all ranks, and where its weights came from (None: they
    were made here).
    """

    model: LanguageModel
    tokenizer: Tokenizer
    words: Words
    origin: Origin | None = None


@dataclass(frozen=True)
class Found:
    """What a path means on ranks that have met: its configuration on the layout asked for, where its weights come from,
    and the tokenizer that belongs to it.
    """

    config: Config
    resolved: Resolved
    mesh: Mesh
    words: Words
    origin: Origin
    tokenizer: Tokenizer


@contextmanager
def opened_model(asked: Asked) -> Iterator[Opened]:
    """While the body runs, on every rank that was started. Raises UsageError and DataError."""
    with found_origin(asked) as found:
        model = load_model(found.origin, found.mesh, asked.overrides, asked.dtype)
        with told_to_others(found.words):
            yield Opened(model, found.tokenizer, found.words, found.origin)


@contextmanager
def found_origin(asked: Asked) -> Iterator[Found]:
    """The same before there is a model."""
    place = find_place()
    source = open_foreign(asked.path, asked.base)  # all ranks open a checkpoint together
    tree = _tree(source) if source is not None else _tree_before_mesh(asked.path)
    config = config_to_ask(tree, place.world_size, asked.overrides, asked.dtype)
    resolved = resolve(config, place.world_size)
    if place.world_size > 1:
        end_with_launcher()
    with joined_world(place, asked.device, TIMEOUT, None) as world:
        placement = schedule_of(config, resolved, resolved.microbatches).placement
        mesh = build_mesh(MeshShape.of(resolved), world.device, placement, None, world.words, world.timeout)
        origin = source or open_origin(asked.path, mesh, asked.base)
        yield Found(config, resolved, mesh, world.words, origin, find_tokenizer(origin, asked.tokenizer))


@contextmanager
def told_to_others(words: Words) -> Iterator[None]:
    """A rank that fails says so to those that wait for its word."""
    try:
        yield
    except Exception as error:
        words.fail(str(error).partition("\n")[0] or type(error).__name__)
        raise


def load_model(origin: Origin, mesh: Mesh, overrides: Sequence[str] = (), dtype: str | None = None) -> LanguageModel:
    """The model on this rank of a mesh, held for good. All ranks call it. Raises DataError."""
    config = config_to_ask(_tree(origin), mesh.world.size, overrides, dtype)
    resolved = resolve(config, mesh.world.size)
    kernels = kernels_of(choice_of(config, mesh.device.type))
    stage = build_stage(config, resolved, mesh, kernels, NOTHING)
    load_origin(origin, config.model, stage, mesh)
    hold(stage)
    return LanguageModel(config, undivided(stage, config, resolved, mesh), mesh)


def config_to_ask(
    tree: Mapping[str, Any], world_size: int, overrides: Sequence[str] = (), dtype: str | None = None
) -> Config:
    """A run's configuration on a layout of so many processes that `overrides` choose, one without anything: what
    training alone needs is set aside, adapters, which are merged, and kernels that another machine may lack.

    Raises DataError for a configuration that is not understood, UsageError for another key, or a layout that the model
    or the world does not have.
    """
    try:
        config = config_from_tree({**tree, "parallel": LAYOUT})
    except UsageError as error:
        raise DataError(f"the checkpoint's configuration cannot be used here: {error}") from None
    backend = "torch" if config.kernels.backend == "torch" else "auto"
    # As many sequences as there are processes suit every layout.
    batch = {"global_batch_size": world_size, "micro_batch_size": 1, "batch_ramp": None, "profile": None}
    changed = {
        "lora": None,  # an adapter is merged as it is loaded
        "kernels": config.kernels.model_copy(update={"backend": backend, "attention": "auto"}),
        "optim": config.optim.model_copy(update={"backend": "auto"}),
        "train": config.train.model_copy(update={**batch, "dtype": dtype or config.train.dtype}),
    }
    plain = config.model_copy(update=changed).model_dump(mode="json")
    if wrong := [text for text in overrides if not text.startswith(SECTIONS)]:
        raise UsageError(f"override {wrong[0]!r}: must begin with {' or '.join(SECTIONS)}, to ask a model")
    apply_overrides(plain, overrides)
    return config_from_tree(plain)


def _tree(origin: Origin) -> Mapping[str, Any]:
    if isinstance(origin, Source):
        return config_of(origin, "unused").model_dump(mode="json")
    return origin.index.config


def _tree_before_mesh(path: str) -> Mapping[str, Any]:
    """Of the newest checkpoint that this process can read the index of."""
    found = config_to_resume(Path(path), path)
    if found is None:
        raise DataError(f"{path}: no index of its checkpoints can be read")
    return found[1]
