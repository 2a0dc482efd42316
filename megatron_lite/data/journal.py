"""How far a run has come, so that another one can go on from there: OUTPUT_PREFIX.journal, removed at the end."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_lite.data.encode import Settings
from megatron_lite.data.indexed_writer import Written
from megatron_lite.data.pieces import Place
from megatron_lite.files import partial_path, publish


def journal_path(output_prefix: str) -> Path:
    return Path(f"{output_prefix}.journal")


def describe_run(inputs: Sequence[str], tokenizer_sha256: str, settings: Settings, piece_bytes: int) -> dict[str, Any]:
    """All that the output's bytes depend on: the files as they are now, the tokenizer, the settings, the cut."""
    stats = [Path(path).stat() for path in inputs]
    return {
        "inputs": [[path, stat.st_size, stat.st_mtime_ns] for path, stat in zip(inputs, stats, strict=True)],
        "tokenizer": tokenizer_sha256,
        "json_keys": list(settings.json_keys),
        "append_eod": settings.append_eod,
        "sentences": settings.sentences,
        "piece_bytes": piece_bytes,
    }


@dataclass(frozen=True)
class Journal:
    run: dict[str, Any]  # of describe_run
    place: Place  # of the first piece that is not written
    written: list[Written]  # by each of the run's writers
    report: dict[str, Any]

    @classmethod
    def load(cls, output_prefix: str, run: dict[str, Any]) -> "Journal | None":
        """The journal of this very run; None where there is none, or one of other input, tokenizer or settings."""
        path = journal_path(output_prefix)
        if not path.exists():
            return None
        fields = json.loads(path.read_bytes())
        if fields["run"] != run:
            return None
        written = [Written(**one) for one in fields["written"]]
        return cls(run, Place(**fields["place"]), written, fields["report"])

    def save(self, output_prefix: str) -> None:
        path = journal_path(output_prefix)
        partial_path(path).write_text(json.dumps(asdict(self)), encoding="utf-8")
        publish(path)
