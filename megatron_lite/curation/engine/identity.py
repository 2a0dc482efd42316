"""Fingerprints of plain data: equal ones mean that a task would do the same again."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import orjson
import xxhash
from pydantic import BaseModel


def fingerprint(*values: Any) -> str:
    """32 hexadecimal digits. Takes numbers, strings, None, mappings, lists, tuples, dataclasses and pydantic models.

    A dataclass' field with `metadata={"identity": False}` is left out. What is callable makes results, and counts with
    its class' `version`, to be raised when it makes others. Raises TypeError for anything else, and for a callable
    without a version of its own, so that nothing that decides a result is forgotten.
    """
    return xxhash.xxh3_128_hexdigest(orjson.dumps(_plain(values), option=orjson.OPT_SORT_KEYS))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, BaseModel):
        return _named(value, {name: getattr(value, name) for name in type(value).model_fields})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field for field in dataclasses.fields(value) if field.metadata.get("identity", True)]
        return _named(value, {field.name: getattr(value, field.name) for field in fields})
    raise TypeError(f"{type(value).__name__} {value!r} is no plain data: it has no fingerprint")


def _named(value: Any, fields: dict[str, Any]) -> list[Any]:
    """With its class' name: two kinds of work with equal parameters are different work."""
    kind = type(value)
    if not callable(value):
        return [kind.__qualname__, _plain(fields)]
    if "version" not in vars(kind):
        raise TypeError(f"{kind.__qualname__} makes results and has no version: it has no fingerprint")
    return [kind.__qualname__, kind.version, _plain(fields)]
