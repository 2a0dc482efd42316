"""The files that say what a run is: config.yaml, the tree it started with, and layout.json, what followed."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_lite.config import Config, Resolved, dump


def write_run_files(run_dir: Path, config: Config, resolved: Resolved) -> None:
    """Write config.yaml (it loads again, on any number of processes) and layout.json (Resolved's fields)."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(dump(config), encoding="utf-8")
    (run_dir / "layout.json").write_text(json.dumps(asdict(resolved), indent=2) + "\n", encoding="utf-8")


def read_layout(run_dir: Path) -> Resolved:
    """The Resolved of a run's layout.json."""
    fields = json.loads((run_dir / "layout.json").read_text(encoding="utf-8"))
    lists_as_tuples: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return Resolved(**lists_as_tuples)
