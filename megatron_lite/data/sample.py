"""A look into the input before the work begins: texts to compare tokenizers on, and how large the output will be."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_lite.data.encode import Settings, encode_text
from megatron_lite.data.indexed import token_dtype
from megatron_lite.data.jsonl import MalformedLine
from megatron_lite.data.pieces import FilePart, Piece, cut_file
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import UsageError

FILES = 8  # looked into, spread over the input
PLACES = 3  # in a plain file: its beginning, middle and last part
PLAIN_BYTES, PACKED_BYTES = 1 << 16, 1 << 20  # read at a place of a plain file, and from a compressed one
TEXTS, CHARACTERS = 8, 2000  # of a place; of a text
INDEX_BYTES = 20 + 12  # a document of one sequence: in the .idx file, and in what it is put together from
SENTENCE_BYTES = 100  # of text, about
MARGIN = 1.05


@dataclass(frozen=True)
class Sample:
    texts: list[str]  # beginnings of texts
    input_bytes: int  # looked into, as they lie on the disk
    text_bytes: int  # in these
    documents: int  # in these

    def output_bytes(self, input_bytes: int, tokenizer: Tokenizer, settings: Settings) -> int:
        """About how large the data sets of so much input will be, while they are written."""
        if not self.text_bytes:
            return 0
        tokens = sum(len(ids) for text in self.texts for ids in encode_text(tokenizer, settings, text))
        tokens_a_byte = tokens / sum(len(text.encode()) for text in self.texts)
        output = self.text_bytes * tokens_a_byte * token_dtype(tokenizer.vocab_size).itemsize
        output += self.documents * INDEX_BYTES
        if settings.sentences:
            output += self.text_bytes / SENTENCE_BYTES * INDEX_BYTES
        return int(MARGIN * output * input_bytes / self.input_bytes)


def take_sample(inputs: Sequence[str], keys: Sequence[str]) -> Sample:
    """The same for the same files."""
    texts, input_bytes, text_bytes, documents = [], 0, 0, 0
    for index in sorted({len(inputs) * i // FILES for i in range(FILES)}):
        for piece, size in _places(inputs[index], keys):
            found = [text for record in piece.records(keys) if not isinstance(record, MalformedLine) for text in record]
            texts += [text[:CHARACTERS] for text in found if text][:TEXTS]
            input_bytes += size
            text_bytes += sum(len(text.encode()) for text in found)
            documents += len(found)
    return Sample(texts, input_bytes, text_bytes, documents)


def check_free_disk(output_prefix: str, output_bytes: int) -> None:
    """Raises UsageError where fewer bytes are free."""
    directory = Path(output_prefix).absolute().parent
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    if free < output_bytes:
        raise UsageError(
            f"the output takes about {output_bytes / 1e9:.3f} GB, {directory} has {free / 1e9:.3f} GB free; "
            "make room there or choose another --output-prefix"
        )


def _places(path: str, keys: Sequence[str]) -> list[tuple[Piece, int]]:
    """Pieces of a file, and how many of its bytes each is."""
    size = Path(path).stat().st_size
    if path.endswith((".gz", ".zst", ".parquet")):
        first = next(cut_file(path, 0, 0, keys, PACKED_BYTES), None)
        return [(first, first.position)] if first else []
    begins = {size * i // PLACES for i in range(PLACES)}
    parts = [FilePart(0, 0, path, begin, min(begin + PLAIN_BYTES, size)) for begin in sorted(begins)]
    return [(part, sum(map(len, part.lines()))) for part in parts if part.begin < part.end]
