"""From a YAML file and `key=value` overrides to a checked `Config`, and back to YAML."""

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from megatron_lite.config.aligned import ALGORITHMS, AlignedConfig
from megatron_lite.config.complaints import describe, suggest
from megatron_lite.config.presets import PRESETS
from megatron_lite.config.tree import Config
from megatron_lite.config.yaml_reader import parse_yaml
from megatron_lite.errors import UsageError
from megatron_lite.place import find_place

Root = TypeVar("Root", bound=BaseModel)


def config_from_tree(tree: Mapping[str, Any]) -> Config:
    """The checked configuration of a nested dict: an `AlignedConfig` where it has an algorithm's section. Raises
    UsageError with one line for the first thing wrong.
    """
    aligned = any(tree.get(name) is not None for name in ALGORITHMS)
    return check_tree(_expand_preset(tree), AlignedConfig if aligned else Config)


def check_tree(tree: Mapping[str, Any], root: type[Root]) -> Root:
    """A nested dict as a tree of sections; raises UsageError with one line for the first thing wrong."""
    try:
        return root.model_validate(tree)
    except ValidationError as error:
        raise UsageError(describe(error, root)) from None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file with `section.key=value` overrides, later ones winning.

    A `model.preset` among the overrides replaces the file's whole model, so that the file's fields do not undo it.
    Raises UsageError.
    """
    return config_from_tree(load_tree(path, overrides))


def load_tree(path: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The same, unchecked."""
    tree = read_tree(path, Config)
    if any(override.startswith("model.preset=") for override in overrides):
        tree = tree | {"model": {}}
    apply_overrides(tree, overrides)
    return tree


def read_tree(path: str | Path, root: type[BaseModel]) -> dict[str, Any]:
    """The nested dict of a YAML file, unchecked. Raises UsageError where the file is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"configuration {path}: cannot be read: {error}") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise UsageError(f"configuration {path}: must be a mapping with the sections {', '.join(root.model_fields)}")
    return tree


def dump(config: BaseModel) -> str:
    """The whole tree as YAML; `load_config` of it gives an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def parse_arguments(description: str, argv: Sequence[str] | None = None) -> Config:
    """The command line that all commands share: `CONFIG.yaml [key=value ...] [--print-config]`.

    `--print-config` prints the tree (once in a torchrun job) and exits with 0. Raises UsageError.
    """
    arguments = command_line(description, describe_keys(Config), "optim.lr=3e-4").parse_args(argv)
    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print_config(config)
    return config


def command_line(description: str, keys: str, example: str) -> argparse.ArgumentParser:
    """A parser of `CONFIG.yaml [key=value ...] [--print-config]`, to which a tool adds options of its own."""
    parser = argparse.ArgumentParser(
        description=description, epilog=keys, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="the configuration file")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help=f"for example {example}; values are YAML"
    )
    parser.add_argument("--print-config", action="store_true", help="print the whole resolved tree and exit")
    return parser


def print_config(config: BaseModel) -> NoReturn:
    if find_place().first:
        sys.stdout.write(dump(config))
    sys.exit(0)


def describe_keys(root: type[BaseModel]) -> str:
    """For a command's help, those of each section; an optional one is `Section | None`."""
    lines = ["keys of the configuration (--print-config shows their values):"]
    for name, field in root.model_fields.items():
        for section in (field.annotation, *get_args(field.annotation)):
            if isinstance(section, type) and issubclass(section, BaseModel) and section.model_fields:
                lines += textwrap.wrap(f"{name}: {', '.join(section.model_fields)}", 100, subsequent_indent="    ")
    return "\n  ".join([*lines, f"model.preset: {', '.join(PRESETS)}"])


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Put `section.key=value` into the tree, later ones winning. Raises UsageError for what does not look so."""
    for override in overrides:
        _apply_override(tree, override)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"override {override!r}: must look like section.key=value, for example optim.lr=3e-4")
    *sections, name = key.split(".")
    for section in sections:
        inner = tree.get(section)
        # A copy, so that YAML anchors shared between sections stay apart.
        tree[section] = dict(inner) if isinstance(inner, dict) else {}
        tree = tree[section]
    tree[name] = parse_yaml(text, f"override {key}")


def _expand_preset(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    model = tree.get("model")
    if not isinstance(model, dict) or "preset" not in model:
        return tree
    name = str(model["preset"])
    if name not in PRESETS:
        raise UsageError(f"model.preset = {name}: must be one of {', '.join(PRESETS)}{suggest(name, PRESETS)}")
    explicit = {key: value for key, value in model.items() if key != "preset"}
    return {**tree, "model": {**PRESETS[name], **explicit}}
