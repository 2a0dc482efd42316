"""Configurations of other programs: an object of JSON a file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_lite.errors import DataError
from megatron_lite.files import sync


def read_json(path: Path) -> Mapping[str, Any]:
    """Raises DataError for what is none."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise DataError(f"{path} is damaged: it is no JSON") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path} is damaged: it holds no JSON object")
    return tree


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """On the disk when this returns."""
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    sync(path)
