"""What a tokenizer makes of text it did not learn from: bytes a token, by source and by language."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.data.text_sample import TextSample
from megatron_lite.files import partial_path, publish


@dataclass
class Row:
    documents: int = 0
    bytes: int = 0
    characters: int = 0
    tokens: int = 0
    byte_tokens: int = 0  # that spell one byte of what the vocabulary lacks

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(self.tokens, 1)

    def add(self, text: str, ids: list[int], byte_tokens: int) -> None:
        self.documents += 1
        self.bytes += len(text.encode())
        self.characters += len(text)
        self.tokens += len(ids)
        self.byte_tokens += byte_tokens


@dataclass
class TokenizerReport:
    """Counts of held-out text; `seen` and `learned` are bytes of all text and of the sample, by source."""

    sha256: str
    vocab_size: int
    seen: dict[str, int]
    learned: dict[str, int]
    whole: Row = field(default_factory=Row)
    sources: dict[str, Row] = field(default_factory=dict)
    languages: dict[str, Row] = field(default_factory=dict)  # of documents that say theirs

    def lines(self) -> Iterator[str]:
        """A table: sources, then languages, then the whole."""
        head = ("held-out text", "documents", "bytes", "bytes a token", "in bytes", "seen MB", "learned MB")
        yield "{:<24}{:>10}{:>12}{:>15}{:>10}{:>10}{:>12}".format(*head)
        for source in sorted(self.seen):
            sizes = (f"{counts.get(source, 0) / 1e6:.1f}" for counts in (self.seen, self.learned))
            yield _line(source, self.sources.get(source, Row()), *sizes)
        for language in sorted(self.languages):
            yield _line(f"language {language}", self.languages[language])
        totals = (f"{sum(counts.values()) / 1e6:.1f}" for counts in (self.seen, self.learned))
        yield _line("all", self.whole, *totals)

    def save(self, path: Path) -> None:
        fields = asdict(self)
        for row, saved in ((self.whole, fields["whole"]), *_pairs(self, fields)):
            saved["bytes_per_token"] = row.bytes_per_token if row.tokens else None
        partial_path(path).write_text(json.dumps(fields, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        publish(path)


def measure(tokenizer: SentencePieceTokenizer, sample: TextSample) -> TokenizerReport:
    """Tokenizes the sample's held-out text."""
    report = TokenizerReport(tokenizer.sha256, tokenizer.vocab_size, dict(sample.seen), dict(sample.learned))
    for held_out in sample.held_out:
        ids = tokenizer.encode(held_out.text)
        byte_tokens = sum(tokenizer.is_byte(token) for token in ids)
        rows = [report.whole, report.sources.setdefault(held_out.source, Row())]
        if held_out.language:
            rows.append(report.languages.setdefault(held_out.language, Row()))
        for row in rows:
            row.add(held_out.text, ids, byte_tokens)
    return report


def _pairs(report: TokenizerReport, fields: dict) -> Iterator[tuple[Row, dict]]:
    for kind in ("sources", "languages"):
        for name, row in getattr(report, kind).items():
            yield row, fields[kind][name]


def _line(name: str, row: Row, seen: str = "", learned: str = "") -> str:
    rate = f"{row.bytes_per_token:.3f}" if row.tokens else "-"
    share = f"{100 * row.byte_tokens / row.tokens:.2f} %" if row.tokens else "-"
    return f"{name:<24}{row.documents:>10,}{row.bytes:>12,}{rate:>15}{share:>10}{seen:>10}{learned:>12}"
