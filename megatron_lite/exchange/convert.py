"""From any source to a Hugging Face directory or a checkpoint of ours: beside the target, and renamed when whole."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError

from megatron_lite.checkpoint.directory import named
from megatron_lite.data.tokenizer import JSON, MODEL
from megatron_lite.errors import DataError, UsageError
from megatron_lite.exchange import hugging_face, ours
from megatron_lite.exchange.gguf import KIND as GGUF
from megatron_lite.exchange.gguf import open_gguf_model
from megatron_lite.exchange.gguf_file import is_gguf
from megatron_lite.exchange.rounding import in_dtype, said_of
from megatron_lite.exchange.source import Source, tokenizer_files
from megatron_lite.exchange.tokenizers import hugging_face_files
from megatron_lite.files import partial_path, sync

LARGEST = 5_000_000_000  # bytes of a file of tensors
KINDS = {"hf": hugging_face.KIND, "ours": ours.KIND}
Check = Callable[[Source, Path], None]


@dataclass(frozen=True)
class Written:
    """What a conversion made of what; `rounded` says what another dtype did to the numbers."""

    source: Source
    kind: str
    files: int
    left_out: tuple[str, ...]
    rounded: str | None = None


def open_source(path: Path, average: bool = False) -> Source:
    """Recognized by its content. With `average` a checkpoint's moving average stands for its weights.

    Raises DataError for what is no model, or not whole, or not one that is known here, and UsageError where there is no
    average.
    """
    with _faults_named(path):
        if is_gguf(path):
            _refuse_average(average, path, GGUF)
            return open_gguf_model(path)
        if (path / hugging_face.CONFIG).is_file():
            _refuse_average(average, path, hugging_face.KIND)
            return hugging_face.open_hugging_face(path)
        if any((path / name).exists() for name in (".metadata", "common.pt", "latest_checkpointed_iteration.txt")):
            raise DataError(
                f"{path} is a checkpoint of Megatron-LM, made of pickles, which are not read; docs/exchange.md has "
                f"the way here, through a Hugging Face directory"
            )
        if named(path):
            return ours.open_ours(path, average)
    raise DataError(
        f"{path} is no model: it must be a Hugging Face directory, a GGUF file, or a checkpoint or run of ours"
    )


def _refuse_average(average: bool, path: Path, kind: str) -> None:
    if average:
        raise UsageError(f"--ema: {path} is a {kind}; only a checkpoint of ours has an average of its weights")


def convert(
    path: Path,
    target: Path,
    to: str,
    *,
    weights_only: bool = False,
    average: bool = False,
    dtype: str | None = None,
    most: int = LARGEST,
    check: Check | None = None,
) -> Written:
    """Write what `path` holds to `target` as `to`, hf or ours; `weights_only` carries no files beside the weights,
    `average` takes the moving average of these, `dtype` is theirs there (None: as they are).

    `check` is called with the source and what was written before that gets its name. Whatever goes wrong, nothing is
    left behind. Raises UsageError for a target that exists or a conversion to the same kind, and DataError.
    """
    check_new(target)
    source = open_source(path, average)
    changed = average or dtype is not None
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
    said = None if dtype is None else said_of(source, dtype)
    source = source if dtype is None else in_dtype(source, dtype)
    files = write_source(source, target, to, most, check)
    return Written(source, KINDS[to], files, left_out, said)


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
    with _faults_named(f"{source.path} to {target}"), _removed_on_error(partial):
        partial.mkdir()
        if to == "hf":
            files = hugging_face.write_hugging_face(partial, source, most)
        else:
            files = ours.write_ours(partial, source, most, str(target))
        sync(partial)
        if check is not None:
            check(source, partial)
        partial.rename(target)
        sync(target.absolute().parent)
    return files


@contextmanager
def _removed_on_error(partial: Path) -> Iterator[None]:
    """What a killed conversion left goes first."""
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _faults_named(what: Path | str) -> Iterator[None]:
    """A fault of the file system in one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DataError(f"{what}: {error}") from error
