"""Input files cut into pieces: what one worker tokenizes at a time, and where an interrupted run goes on.

The cut depends on the files alone. A piece of a plain file names bytes, and its worker reads them; what is compressed,
or Parquet, this process unpacks, several times as fast as workers tokenize.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from megatron_lite.compression import DAMAGE, decompressed
from megatron_lite.data.jsonl import MalformedLine, parse_texts
from megatron_lite.errors import DataError, UsageError
from megatron_lite.lines import read_lines

if TYPE_CHECKING:
    import pyarrow as pa

PIECE_BYTES = 1 << 22  # of text: large enough that passing it round costs little beside tokenizing it

Texts = list[str] | MalformedLine  # of one record: the text of every key, or what is wrong with it


@dataclass(frozen=True)
class Place:
    """Where a piece of the input begins."""

    file: int = 0  # number of the file
    piece: int = 0  # number of the piece in it
    record: int = 1  # number of its first record in the file, from 1
    position: int = 0  # bytes of all files before it, as they lie on the disk


class Piece(Protocol):
    @property
    def file(self) -> int:
        """Number of the input file."""

    @property
    def position(self) -> int:
        """Bytes of all inputs up to the end of this piece, as they lie on the disk."""

    def records(self, keys: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Texts]:
        """The texts of each record under `keys`, then those under `optional`, "" where a record has none."""


@dataclass(frozen=True)
class FilePart:
    """The lines of a plain file that begin in [begin, end)."""

    file: int
    position: int
    path: str
    begin: int
    end: int

    def lines(self) -> Iterator[bytes]:
        with Path(self.path).open("rb") as file:
            for _, line in read_lines(file, None, self.begin, self.end):
                yield line

    def records(self, keys: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Texts]:
        return _parse(self.lines(), keys, optional)


@dataclass(frozen=True)
class Lines:
    """Lines of a compressed file."""

    file: int
    position: int
    lines: list[bytes]

    def records(self, keys: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Texts]:
        return _parse(self.lines, keys, optional)


@dataclass(frozen=True)
class Rows:
    """Rows of a Parquet file, a column a key."""

    file: int
    position: int
    batch: "pa.RecordBatch"

    def records(self, keys: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Texts]:
        names = self.batch.schema.names
        for row in range(self.batch.num_rows):
            try:
                texts = [self.batch.column(key)[row].as_py() for key in keys]
                found = [self.batch.column(key)[row].as_py() if key in names else None for key in optional]
            except UnicodeDecodeError:  # Arrow takes any bytes for a string
                yield MalformedLine("broken UTF-8")
                continue
            missing = [key for key, text in zip(keys, texts, strict=True) if text is None]
            yield MalformedLine("no text", f"{missing[0]!r} is null") if missing else texts + [t or "" for t in found]


@dataclass(frozen=True)
class Damage:
    """The end of a file that cannot be read any further; what came before it came in other pieces."""

    file: int
    position: int
    reason: str

    def records(self, keys: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Texts]:
        yield MalformedLine("damaged file", self.reason)


def cut_inputs(
    paths: Sequence[str],
    keys: Sequence[str],
    start: Place = Place(),
    piece_bytes: int = PIECE_BYTES,
    optional: Sequence[str] = (),
) -> Iterator[Piece]:
    """The pieces of all files in order, from `start` on; of Parquet the columns `keys`, and `optional` where they are.

    Raises DataError for a file that cannot be opened, or a Parquet file without a column of text for each key.
    """
    sizes = [Path(path).stat().st_size for path in paths]
    for number in range(start.file, len(paths)):
        pieces = cut_file(paths[number], number, sum(sizes[:number]), keys, piece_bytes, optional)
        skipped = start.piece if number == start.file else 0
        for index, piece in enumerate(pieces):
            if index >= skipped:
                yield piece


def cut_file(
    path: str, number: int, before: int, keys: Sequence[str], piece_bytes: int, optional: Sequence[str] = ()
) -> Iterator[Piece]:
    """The pieces of one file; `before` bytes lie in the files before it."""
    try:
        if path.endswith(".parquet"):
            yield from _parquet_pieces(path, number, before, keys, piece_bytes, optional)
        elif path.endswith((".gz", ".zst")):
            yield from _compressed_pieces(path, number, before, piece_bytes)
        else:
            size = Path(path).stat().st_size
            for begin in range(0, size, piece_bytes):
                end = min(begin + piece_bytes, size)
                yield FilePart(number, before + end, path, begin, end)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def _compressed_pieces(path: str, number: int, before: int, piece_bytes: int) -> Iterator[Piece]:
    lines, size = [], 0
    with Path(path).open("rb") as raw, decompressed(raw, path) as text:
        try:
            for _, line in read_lines(text, None):
                lines.append(line)
                size += len(line) + 1
                if size >= piece_bytes:
                    yield Lines(number, before + raw.tell(), lines)
                    lines, size = [], 0
            damage = None
        except DAMAGE as error:
            damage = f"compressed data is damaged or cut short: {error}"
        if lines:
            yield Lines(number, before + raw.tell(), lines)
        if damage:
            yield Damage(number, before + Path(path).stat().st_size, damage)


def _parquet_pieces(
    path: str, number: int, before: int, keys: Sequence[str], piece_bytes: int, optional: Sequence[str]
) -> Iterator[Piece]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError(f"{path}: reading Parquet takes pyarrow: pip install pyarrow") from None
    size, done = Path(path).stat().st_size, 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_columns(path, file.schema_arrow, keys)
            columns = [*keys, *(key for key in optional if key in file.schema_arrow.names)]
            for group in range(file.num_row_groups):
                rows = _batch_rows(file, group, piece_bytes)
                for batch in file.iter_batches(rows, row_groups=[group], columns=columns):
                    done += batch.num_rows
                    yield Rows(number, before + size * done // file.metadata.num_rows, batch)
            if done != file.metadata.num_rows:  # the footer has no check sum
                raise pa.ArrowInvalid(f"{file.metadata.num_rows:,} rows are announced, {done:,} are there")
    except (pa.ArrowException, OSError) as error:
        yield Damage(number, before + size, f"damaged or no Parquet: {' '.join(str(error).split())}")


def _check_columns(path: str, schema: "pa.Schema", keys: Sequence[str]) -> None:
    import pyarrow.types as types

    for key in keys:
        if key not in schema.names:
            raise DataError(f"{path} has no column {key!r}; it has {', '.join(schema.names)}")
        kind = schema.field(key).type
        value = kind.value_type if types.is_dictionary(kind) else kind
        if not (types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)):
            raise DataError(f"{path}: column {key!r} holds {kind}, not text")


def _batch_rows(file: "pa.parquet.ParquetFile", group: int, piece_bytes: int) -> int:
    rows = file.metadata.row_group(group)
    return max(1, rows.num_rows * piece_bytes // max(rows.total_byte_size, 1))


def _parse(lines: Iterable[bytes], keys: Sequence[str], optional: Sequence[str]) -> Iterator[Texts]:
    for line in lines:
        try:
            yield parse_texts(line.rstrip(b"\r"), keys, optional)
        except MalformedLine as error:
            yield error
