"""Bytes of plain, .gz and .zst files, damage told apart from an end."""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator

import zstandard

CHUNK = 1 << 17  # bytes of a .zst file decompressed at once

# What reading raises for compressed data that is damaged or cut short.
DAMAGE = (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile)


@contextlib.contextmanager
def decompressed(raw: io.BufferedIOBase, name: str) -> Iterator[io.BufferedIOBase]:
    """The text bytes of `raw`, all members or frames, compressed as the ending of `name` says: .gz, .zst, else plain.

    Reading raises one of DAMAGE where the compressed data is damaged or cut short.
    """
    if name.endswith(".gz"):
        with gzip.GzipFile(fileobj=raw) as text:
            yield text
    elif name.endswith(".zst"):
        with io.BufferedReader(_ZstdReader(raw), 1 << 20) as text:
            yield text
    else:
        yield raw


class _ZstdReader(io.RawIOBase):
    """Frame after frame of a .zst file. zstandard's own reader takes a file that is cut short for its end."""

    def __init__(self, raw: io.BufferedIOBase):
        self._raw = raw
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed, self._text = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what a BufferedReader passes
        while not self._text:
            compressed = self._compressed or self._raw.read(CHUNK)
            if not compressed:
                if self._frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
            self._text, self._compressed = memoryview(self._frame.decompress(compressed)), b""
            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._text))
        buffer[:count], self._text = self._text[:count], self._text[count:]
        return count
