"""Documents of Parquet files, whole or a range of row groups. A document's number is its row in the file."""

from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.parquet

from megatron_lite.curation.config import Format, ReadingConfig
from megatron_lite.curation.documents import Document
from megatron_lite.curation.readers.inputs import Slice
from megatron_lite.curation.readers.opening import open_input
from megatron_lite.curation.readers.refusals import Refusal, Refused, check_size, check_text, damage, decode

ROWS_AT_ONCE = 256


def read_parquet(part: Slice, form: Format, reading: ReadingConfig) -> Iterator[Document | Refusal]:
    with open_input(part.path) as raw:
        row = 0
        try:
            table = pyarrow.parquet.ParquetFile(raw, page_checksum_verification=True)
            counts = _group_rows(table)
            groups = range(part.begin, table.num_row_groups if part.end is None else part.end)
            row = sum(counts[: part.begin])
            for values in _rows(table, groups, form):
                try:
                    yield _document(part, row, values, form, reading)
                except Refused as refused:
                    yield refused.at(f"{part.path}: row {row}")
                row += 1
            if row != sum(counts[: groups.stop]):
                raise pyarrow.ArrowInvalid(f"{sum(counts[: groups.stop]) - row} rows are not there")
        except (pyarrow.ArrowException, OSError, EOFError) as error:
            yield damage(error, f"{part.path}: from row {row} of row groups from {part.begin}")


def _group_rows(table: pyarrow.parquet.ParquetFile) -> list[int]:
    """Raises ArrowInvalid for a footer that contradicts itself: unlike pages, it has no check sum."""
    counts = [table.metadata.row_group(number).num_rows for number in range(table.num_row_groups)]
    if sum(counts) != table.metadata.num_rows:
        raise pyarrow.ArrowInvalid(f"{table.metadata.num_rows} rows, and {sum(counts)} in the row groups")
    return counts


def _rows(table: pyarrow.parquet.ParquetFile, groups: range, form: Format) -> Iterator[dict[str, Any]]:
    """The wanted columns of each row. Strings come as bytes, so that one that is no UTF-8 stands alone."""
    fields = form.fields
    wanted = {fields.text, fields.url, fields.language, *fields.keep} & set(table.schema_arrow.names)
    batches = table.iter_batches(ROWS_AT_ONCE, row_groups=list(groups), columns=sorted(wanted), use_threads=False)
    for batch in batches:
        names = batch.schema.names
        columns = {name: _plain_strings(column).to_pylist() for name, column in zip(names, batch, strict=True)}
        for row in range(batch.num_rows):
            yield {name: values[row] for name, values in columns.items()}


def _plain_strings(column: pyarrow.Array) -> pyarrow.Array:
    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return column.cast(pyarrow.large_binary())
    return column


def _document(part: Slice, row: int, values: dict[str, Any], form: Format, reading: ReadingConfig) -> Document:
    notes: dict[str, Any] = {}
    fields, name = form.fields, part.file.source
    if fields.text not in values:
        raise Refused("no_text", f"no column {fields.text!r}")
    text = values[fields.text]
    if isinstance(text, bytes):
        check_size(len(text), reading)
        text = decode(text, reading, notes)
    text = check_text(text, reading, notes)
    notes |= {key: _json_value(values[key]) for key in fields.keep if key in values}
    url, language = (_json_value(values.get(key)) for key in (fields.url, fields.language))
    return Document(f"{name}/{part.file.number}/{row}", text, name, url, language, notes)


def _json_value(value: Any) -> Any:
    """What JSON holds as it is; bytes and everything else, such as times, as a string."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if value is None or isinstance(value, bool | int | float) else str(value)
