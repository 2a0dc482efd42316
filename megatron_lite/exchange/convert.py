"""From any source to a Hugging Face directory, a checkpoint of ours or PEFT's directory of an adapter: beside the
target, and renamed when whole.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from megatron_lite.checkpoint import Base
from megatron_lite.data.tokenizer import JSON, MODEL
from megatron_lite.errors import DataError, UsageError
from megatron_lite.exchange import hugging_face, ours, peft
from megatron_lite.exchange.merging import in_exact, merged_alone, said_of_merging
from megatron_lite.exchange.origin import base_of, faults_named, open_source
from megatron_lite.exchange.rounding import in_dtype, said_of
from megatron_lite.exchange.source import Source, tokenizer_files
from megatron_lite.exchange.tokenizers import hugging_face_files
from megatron_lite.files import partial_path, sync
from megatron_lite.mesh import mesh_of_one

LARGEST = 5_000_000_000  # bytes of a file of tensors
MODELS = {"hf": hugging_face.KIND, "ours": ours.KIND}
KINDS = {**MODELS, "peft": peft.KIND}
Check = Callable[[Source, Path], None]


@dataclass(frozen=True)
class Written:
    """What a conversion made of what; `rounded` says what another dtype did to the numbers, `merged` what an adapter
    did.
    """

    source: Source
    kind: str
    files: int
    left_out: tuple[str, ...]
    rounded: str | None = None
    merged: str | None = None


def convert(
    path: Path,
    target: Path,
    to: str,
    *,
    weights_only: bool = False,
    average: bool = False,
    merge: bool = False,
    base: Path | None = None,
    dtype: str | None = None,
    most: int = LARGEST,
    check: Check | None = None,
) -> Written:
    """Write what `path` holds to `target` as `to`, of KINDS; `weights_only` carries no files beside the weights,
    `average` takes the moving average of these, `dtype` is theirs there (None: as they are). An adapter, whose `base`
    lies there (None: where it was), goes to hf merged, to ours only with `merge`.

    `check` is called with the source and what was written before that gets its name. Whatever goes wrong, nothing is
    left behind. Raises UsageError for a target that exists or a conversion to the same kind, and DataError.
    """
    check_new(target)
    source = open_source(path, average, base)
    merges = source.adapter is not None and (merge or to == "hf")
    changed = average or dtype is not None or merges
    _check_adapter(source, to, merge)
    if source.kind == KINDS[to] and not changed and not (to == "ours" and weights_only):
        more = "; --weights-only makes one without what training needs" if to == "ours" else ""
        raise UsageError(f"{path} is a {source.kind} already{more}")
    left_out = source.left_out
    if weights_only:
        left_out += (", ".join(source.carried),) if source.carried else ()
        source = replace(source, carried={})
    elif to == "hf" and MODEL in source.carried and JSON not in source.carried:
        source, without = _with_tokenizer_json(source)
        left_out += without
    said = None if dtype is None else said_of(source.parameters if merges else source.own, dtype)
    about = said_of_merging(source) if merges else None
    if merges:
        source = merged_alone(source if dtype is None else in_exact(source))
    if dtype is not None:
        source = in_dtype(source, dtype)
    files = write_source(source, target, to, most, check)
    return Written(source, KINDS[to], files, left_out, said, about)


def _check_adapter(source: Source, to: str, merge: bool) -> None:
    """Raises UsageError for what only an adapter, or only one on a base that PEFT opens, can do."""
    if source.adapter is None and (merge or to == "peft"):
        raise UsageError(f"{'--merge' if merge else '--to peft'}: {source.path} is no adapter, but a {source.kind}")
    if to == "peft" and merge:
        raise UsageError("--to peft --merge: what is merged is no adapter any more; leave one of them out")
    base = None if source.adapter is None else source.adapter.base
    if to == "peft" and not (isinstance(base, Source) and base.kind == hugging_face.KIND):
        where = "its own weights" if base is None else str(base.path)
        raise UsageError(
            f"--to peft: {source.path} stands on {where}, and PEFT opens Hugging Face directories alone: convert that "
            f"with --to hf, and give the directory with --base"
        )


def _with_tokenizer_json(source: Source) -> tuple[Source, tuple[str, ...]]:
    """A SentencePiece model goes out beside one that every reader of Hugging Face's opens; why not, where it cannot."""
    files = tokenizer_files(source.path, source.carried)
    assert files is not None  # a model is there
    try:
        made = hugging_face_files(files)
        return replace(source, carried={**source.carried, **made}), ()
    except DataError as reason:
        return source, (f"a {JSON} ({reason})",)


def check_new(target: Path) -> None:
    """Raises UsageError for a target that exists, or whose directory does not."""
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} exists: the target must be new")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"{target.absolute().parent} is no directory: the target's must exist")


def write_source(source: Source, target: Path, to: str, most: int = LARGEST, check: Check | None = None) -> int:
    """A source as `to`, whole or not at all; how many files of tensors it takes."""
    partial = partial_path(target)
    with faults_named(f"{source.path} to {target}"), _removed_on_error(partial):
        partial.mkdir()
        if to == "hf":
            files = hugging_face.write_hugging_face(partial, source, most)
        elif to == "ours":
            files = ours.write_ours(partial, source, most, str(target), _beneath(source))
        else:
            beneath = _beneath(source)
            assert beneath is not None  # as was checked
            files = peft.write_peft(partial, source, beneath)
        sync(partial)
        if check is not None:
            check(source, partial)
        partial.rename(target)
        sync(target.absolute().parent)
    return files


def _beneath(source: Source) -> Base | None:
    """What a source's adapter stands on."""
    base = None if source.adapter is None else source.adapter.base
    return None if base is None else base_of(base, mesh_of_one(torch.device("cpu")))


@contextmanager
def _removed_on_error(partial: Path) -> Iterator[None]:
    """What a killed conversion left goes first."""
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
