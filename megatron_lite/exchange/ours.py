"""A checkpoint of ours as a source, and one of weights alone that is written: what `checkpoint.init` and generation
take.
"""

import json
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_lite.checkpoint import Base, Checkpoint
from megatron_lite.checkpoint.blocks import Block, plan_reads
from megatron_lite.checkpoint.files import checksum
from megatron_lite.checkpoint.fill import SLICE, TensorFile
from megatron_lite.checkpoint.index import (
    AVERAGE,
    STATE,
    WEIGHTS,
    Index,
    Parameter,
    RunState,
    StoredFile,
    StoredModel,
    key,
)
from megatron_lite.config import Config, LoraConfig, config_from_tree
from megatron_lite.data.tokenizer import GENERATION, JSON
from megatron_lite.errors import DataError, UsageError
from megatron_lite.exchange.architectures import TOKENS, checked_model
from megatron_lite.exchange.merging import adapted, check_matrices
from megatron_lite.exchange.source import (
    CARRIED,
    Adapter,
    Facts,
    Source,
    Stored,
    carried_over,
    common_dtype,
    fitting,
    without_head,
)
from megatron_lite.exchange.tensor_files import in_files, write_tensors
from megatron_lite.files import sync
from megatron_lite.model.parameters import is_adapter

KIND = "checkpoint"
# In the index's `extra`: special tokens' ids where it came from, and which adapter is in the weights.
EXTRA, MERGED = "exchange", "merged"
SPECIAL = {"bos_token_id": "<s>", "pad_token_id": "<pad>"}


def source_of(checkpoint: Checkpoint, base: "Source | Checkpoint | None" = None, average: bool = False) -> Source:
    """A checkpoint's main model, its adapter merged, if it has one; `base` is what it stands on, if it does. With
    `average` the moving average stands for what was trained.

    Raises DataError for a model that cannot be built here, UsageError where there is no average.
    """
    index, main = checkpoint.index, checkpoint.index.main
    model = checked_model(main.model, str(checkpoint))
    if average and not main.averaged:
        raise UsageError(f"--ema: {checkpoint} has no average of its weights; a run with train.ema has")
    found = _stored(checkpoint, average)
    matrices = {name: found.pop(name) for name in list(found) if is_adapter(name)}
    beside = tuple(found) if base is not None else ()
    carried = {name: (checkpoint.path / name).read_bytes() for name in CARRIED if name in index.files}
    tokenizer = index.tokenizer
    if base is not None:
        under = source_of(base) if isinstance(base, Checkpoint) else base
        found = {**without_head(under.parameters, model), **found}
        carried, tokenizer = carried_over(carried, under.carried), tokenizer or under.tokenizer
    parameters = fitting(checkpoint.path, model, found)
    stored = common_dtype(one.dtype for one in parameters.values())
    train = main.config["train"]
    facts = Facts(train["sequence_length"], train["initializer_range"], _tokens(index))
    dtype = stored if stored == "float16" else train["dtype"]
    left_out = _left_out(checkpoint, average)
    notes = {name: note for name, note in index.progress.extra.items() if name not in (EXTRA, MERGED)}
    plain = Source(
        checkpoint.path, KIND, model, facts, dtype, parameters, carried, left_out, tokenizer,
        merged=index.progress.extra.get(MERGED) or {}, notes=notes,
    )  # fmt: skip
    if not matrices:
        return plain
    lora = LoraConfig.model_validate(main.config["lora"])
    check_matrices(checkpoint.path, model, lora, matrices)
    return adapted(plain, Adapter(lora, matrices, parameters, beside, base))


def _stored(checkpoint: Checkpoint, average: bool) -> dict[str, Stored]:
    opened = lru_cache(None)(lambda name: TensorFile(checkpoint.path / name))
    found = {}
    for name, parameter in checkpoint.index.main.parameters.items():
        read = partial(_whole, name, parameter, AVERAGE if average and parameter.averaged else WEIGHTS, opened)
        found[name] = Stored(parameter.shape, getattr(torch, parameter.dtype), read)
    return found


def write_ours(directory: Path, source: Source, most: int, run_dir: str, base: Base | None = None) -> int:
    """The source's model into an empty directory, at most `most` bytes a file; returns how many files of tensors. With
    an adapter this is stored for itself, on its `base`.
    """
    files: dict[str, StoredFile] = {}
    parameters: dict[str, Parameter] = {}
    parts = in_files(source.own, most)
    for number, tensors in enumerate(parts):
        file = f"weights_{number:05d}.safetensors"
        blocks = {name: Block(file, (0,) * len(one.shape), one.shape) for name, one in tensors.items()}
        files[file] = write_tensors(
            directory / file, {key(WEIGHTS, name, blocks[name]): one for name, one in tensors.items()}, {}
        )
        for name, one in tensors.items():
            dtype = str(one.dtype).removeprefix("torch.")
            parameters[name] = Parameter(one.shape, dtype, (blocks[name],), trained=False)
    for name, content in files_of(source).items():
        files[name] = _write(directory / name, content)
    config = config_of(source, run_dir)
    if source.adapter is not None:
        config = config.model_copy(update={"lora": source.adapter.lora})
    noted = {**source.notes, EXTRA: dict(source.facts.tokens)}
    noted |= {MERGED: dict(source.merged)} if source.merged else {}
    trees = config.model.model_dump(mode="json"), config.model_dump(mode="json")
    index = Index(
        progress=RunState(0, 0, 0, noted),
        tokenizer=source.tokenizer,
        files=files,
        main=StoredModel(*trees, 0, parameters, base),
    )
    index.check_whole()
    index.save(directory)
    return len(parts)


def files_of(source: Source) -> dict[str, bytes]:
    """What goes along with the weights, by name."""
    carried = dict(source.carried)
    if JSON in carried and source.facts.tokens:
        # Where only config.json said what ends a document, the tokenizer would not know.
        carried.setdefault(GENERATION, json.dumps(dict(source.facts.tokens)).encode())
    return carried


def _whole(name: str, parameter: Parameter, kind: str, opened: Any) -> Tensor:
    """A logical parameter's weights or average, put together from its blocks."""
    target = torch.empty(parameter.shape, dtype=getattr(torch, parameter.dtype))
    for read in plan_reads((0,) * len(parameter.shape), parameter.shape, parameter.blocks):
        file, tensor = opened(read.block.file), key(kind, name, read.block)
        for portion in read.portions(SLICE // file.dtype(tensor).itemsize):
            rows, *columns = portion.source
            target[portion.target] = file.read_rows(tensor, rows)[(slice(None), *columns)]
    return target


def config_of(source: Source, run_dir: str) -> Config:
    """One that generation and `checkpoint.init` accept: the model and its longest sequence are the source's; nothing
    else of it was trained with. Raises DataError for a source that none fits.
    """
    try:
        return config_from_tree(
            {
                "model": source.model.model_dump(mode="json"),
                "optim": {"lr": 1e-5},
                "train": {
                    "steps": 1, "global_batch_size": 1, "sequence_length": source.facts.context, "run_dir": run_dir,
                    "dtype": "float32" if source.dtype == "float16" else source.dtype,
                    "initializer_range": source.facts.initializer_range,
                },
            }
        )  # fmt: skip
    except UsageError as error:
        raise DataError(f"{source.path}: {error}") from None


def _tokens(index: Index) -> Mapping[str, Any]:
    """What a conversion noted, or what the run's tokenizer says."""
    noted = index.progress.extra.get(EXTRA)
    if isinstance(noted, dict):
        return {name: noted[name] for name in TOKENS if name in noted}
    if index.tokenizer is None:
        return {}
    identity = index.tokenizer.identity
    special = {
        name: identity.special_tokens[piece] for name, piece in SPECIAL.items() if piece in identity.special_tokens
    }
    return {**special, "eos_token_id": identity.eod_id}


def _left_out(checkpoint: Checkpoint, average: bool) -> tuple[str, ...]:
    """What a checkpoint holds beside the weights, or beside the average where that is taken."""
    index, progress = checkpoint.index, checkpoint.index.progress
    trained = sum(parameter.trained for parameter in index.main.parameters.values())
    said = []
    if index.main.averaged:
        said.append("the weights whose average this is" if average else "the average of the weights, which --ema takes")
    if trained:
        said.append(f"the optimizer's moments of {trained} parameters after {index.main.updates} updates")
    if progress.step:
        said.append(f"the step ({progress.step}) and the data's position ({progress.samples} samples)")
    said += [f"the model {name} beside it" for name in index.others]
    if STATE in index.files:
        said.append(f"the tensors of {STATE}")
    if index.tokenizer is not None and checkpoint.tokenizer is None:
        said.append(f"the tokenizer {index.tokenizer.path}, which is no part of it")
    return tuple(said)


def _write(path: Path, content: bytes) -> StoredFile:
    path.write_bytes(content)
    sync(path)
    return StoredFile(len(content), checksum(path))
