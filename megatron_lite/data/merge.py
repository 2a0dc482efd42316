"""Many data sets put together as one: bytes copied, the index streamed, so that no size is too large.

Equal, byte for byte, to the merge by megatron-core's IndexedDatasetBuilder.add_index.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_lite.data.indexed import bin_path, idx_path, open_indexed
from megatron_lite.data.indexed_writer import IndexedDatasetWriter, Written
from megatron_lite.data.sample import check_free_disk
from megatron_lite.data.sidecar import TokenizerIdentity
from megatron_lite.errors import DataError, UsageError
from megatron_lite.progress import Progress


@dataclass(frozen=True)
class Merged:
    written: Written
    tokenizer: TokenizerIdentity | None
    unknown: list[str]  # prefixes of data sets whose tokenizer nobody noted


def find_prefixes(inputs: Sequence[str]) -> list[str]:
    """The data sets named, and for a directory all that lie in it, by name. Raises UsageError for neither."""
    prefixes = []
    for name in inputs:
        if Path(name).is_dir():
            found = sorted(str(path)[: -len(".idx")] for path in Path(name).glob("*.idx"))
            if not found:
                raise UsageError(f"{name} is a directory without a data set (PREFIX.bin and PREFIX.idx)")
            prefixes += found
        else:
            prefixes.append(name.removesuffix(".bin").removesuffix(".idx"))
    return prefixes


def merge_datasets(prefixes: Sequence[str], output_prefix: str) -> Merged:
    """Write OUTPUT_PREFIX.{bin,idx,json}: the documents of all data sets, in the order given.

    The tokenizer is noted where all have the same; unknown ones make the whole unknown. Raises DataError, before
    anything is written, for data sets that do not open, of different tokenizers or token types, and for a damaged one
    on the way; UsageError where the output is one of the inputs or finds no room.
    """
    if _real(output_prefix) in map(_real, prefixes):
        raise UsageError(f"{output_prefix} is both an input and the output")
    dtype, tokenizer, unknown = _agree(prefixes)
    sizes = [bin_path(prefix).stat().st_size for prefix in prefixes]
    check_free_disk(output_prefix, sum(sizes) + 2 * sum(idx_path(prefix).stat().st_size for prefix in prefixes))
    with (
        IndexedDatasetWriter(output_prefix, dtype, None if unknown else tokenizer) as writer,
        Progress("merge", sum(sizes)) as progress,
    ):
        for number, prefix in enumerate(prefixes):
            writer.add_dataset(open_indexed(prefix))
            progress.advance(sum(sizes[: number + 1]), f"{writer.written.documents} documents")
    return Merged(writer.written, writer.tokenizer, unknown)


def _agree(prefixes: Sequence[str]) -> tuple[str, TokenizerIdentity | None, list[str]]:
    """The token type and the tokenizer of all data sets, and which of them do not say. One is open at a time."""
    dtypes: dict[str, str] = {}  # the first data set of each
    tokenizers: dict[str, tuple[str, TokenizerIdentity]] = {}
    unknown: list[str] = []
    for prefix in prefixes:
        dataset = open_indexed(prefix)
        dtypes.setdefault(dataset.tokens.dtype.name, prefix)
        if dataset.sidecar and dataset.sidecar.tokenizer:
            tokenizers.setdefault(dataset.sidecar.tokenizer.sha256, (prefix, dataset.sidecar.tokenizer))
        else:
            unknown.append(prefix)
    if len(dtypes) > 1:
        listed = ", ".join(f"{prefix} has {dtype}" for dtype, prefix in dtypes.items())
        raise DataError(f"data sets of different token types: {listed}")
    if len(tokenizers) > 1:
        listed = ", ".join(f"{prefix} by {sha256[:16]}..." for sha256, (prefix, _) in tokenizers.items())
        raise DataError(f"data sets of different tokenizers: {listed}")
    return next(iter(dtypes)), next((identity for _, identity in tokenizers.values()), None), unknown


def _real(prefix: str) -> Path:
    return idx_path(prefix).resolve()
