"""Turns what pydantic reports about a configuration into one line: the key, its value, and what would be right."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


def nearest(value: Any, names: Iterable[Any]) -> str | None:
    """The name most like `value`, or None when nothing is close."""
    matches = difflib.get_close_matches(str(value), [str(name) for name in names], n=1, cutoff=0.5)
    return matches[0] if matches else None


def suggest(value: Any, names: Iterable[Any]) -> str:
    """`; did you mean NAME?` for the nearest name, or nothing."""
    name = nearest(value, names)
    return f"; did you mean {name}?" if name else ""


def show(value: Any) -> str:
    """A value as it would stand in the YAML file."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def describe(error: ValidationError, root: type[BaseModel]) -> str:
    """One line for the most telling of a ValidationError's complaints; says how many more there are."""
    complaints = error.errors()
    # A misspelled key is unknown and its right spelling missing, and a derived value is missing where its source is
    # wrong: what is missing is told only when nothing else is wrong, an unknown key first.
    told = [complaint for complaint in complaints if complaint["type"] != "missing"] or complaints
    told.sort(key=lambda complaint: complaint["type"] != "extra_forbidden")
    line = _describe_one(told[0], root)
    return f"{line} (and {len(told) - 1} more)" if len(told) > 1 else line


def _describe_one(complaint: ErrorDetails, root: type[BaseModel]) -> str:
    location, kind, value = complaint["loc"], complaint["type"], complaint["input"]
    key = _dotted(location)
    if kind == "extra_forbidden":
        return _describe_unknown(location, value, root)
    if kind == "missing":
        return f"{key}: missing; it has no default"
    if kind == "model_type":
        fields = _section(location, root).model_fields
        return f"{key} = {show(value)}: must be a section with the keys {', '.join(fields)}"
    if kind == "literal_error":
        allowed = complaint["ctx"]["expected"].replace("'", "")
        return f"{key} = {show(value)}: must be {allowed}{suggest(value, allowed.replace(' or ', ', ').split(', '))}"
    rule = complaint["msg"].removeprefix("Input ").replace("should", "must").replace("tuple", "list")
    return f"{key} = {show(value)}: {rule}"


def _describe_unknown(location: tuple[int | str, ...], value: Any, root: type[BaseModel]) -> str:
    *parents, name = location
    siblings = _section(tuple(parents), root).model_fields
    prefix = f"{_dotted(tuple(parents))}." if parents else ""
    elsewhere = next((key for key in _all_keys(root) if key.rsplit(".", 1)[-1] == name), None)
    close = nearest(name, siblings)
    right = elsewhere or (f"{prefix}{close}" if close else None)
    help_text = f"did you mean {right}?" if right else f"valid names: {', '.join(prefix + field for field in siblings)}"
    return f"{_dotted(location)} = {show(value)}: unknown key; {help_text}"


def _dotted(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _section(location: tuple[int | str, ...], root: type[BaseModel]) -> type[BaseModel]:
    """The model class that a location leads to, through tuples and mappings of models as well."""
    model, parts = root, iter(location)
    for part in parts:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            if get_origin(annotation) is Mapping:
                next(parts, None)  # the mapping's key
            model = next(_models_in(annotation), model)
    return model


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for inner in _models_in(field.annotation):
            yield from _all_keys(inner, f"{prefix}{name}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)
