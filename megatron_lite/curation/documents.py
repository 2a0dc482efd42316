"""What passes through curation: documents, and why one was dropped."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Document:
    """One document. `id` is a pure function of the configuration, so every run gives a document the same one."""

    id: str  # "<source>/<input file's number>/<record's number>"
    text: str
    source: str  # the configuration's name of the source
    url: str | None = None
    language: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)  # what the reader found and what rules noted; JSON values


@dataclass(frozen=True)
class Drop:
    """Why a document was dropped."""

    rule: str  # "gopher_quality.mean_word_length"
    detail: str  # "11.3 is above 10": the value and the threshold
