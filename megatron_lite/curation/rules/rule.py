"""What a rule is, and how a number is held against a threshold."""

from collections.abc import Iterable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

from megatron_lite.curation.documents import Document, Drop
from megatron_lite.errors import UsageError


class Rule(Protocol):
    """Judges a document: None keeps it. A rule may edit the document and note numbers in its metadata.

    Rules are frozen dataclasses: their fields are thresholds, the defaults those of the paper; None switches one off.
    `version` is raised when the code judges or edits otherwise: documents that passed the old one are judged again.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __call__(self, document: Document) -> Drop | None: ...


class CachedProperties:
    """A frozen dataclass with cached properties that goes to other processes without them."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def check_files(option: str, paths: Iterable[str]) -> None:
    """Raises UsageError for the first that is no file."""
    if missing := next((path for path in paths if not Path(path).is_file()), None):
        raise UsageError(f"{option} = {missing}: no such file")


def check(name: str, value: float, least: float | None = None, most: float | None = None) -> Drop | None:
    """A Drop where the value is below `least` or above `most`; it says both."""
    if least is not None and value < least:
        return Drop(name, f"{_show(value, least)} is below {least:g}")
    if most is not None and value > most:
        return Drop(name, f"{_show(value, most)} is above {most:g}")
    return None


def _show(value: float, threshold: float) -> str:
    """Short, but never so short that it reads like the threshold it crossed."""
    short = str(value) if isinstance(value, int) else f"{value:.4g}"
    return short if float(short) != threshold else repr(value)
