"""The command line of what follows pretraining: as pretraining's, with an algorithm's section, and with the model of
`checkpoint.init` where the file has none.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_lite.checkpoint import config_to_resume
from megatron_lite.config import AlignedConfig, config_from_tree
from megatron_lite.config.aligned import Algorithm
from megatron_lite.config.load import command_line, describe_keys, load_tree, print_config
from megatron_lite.errors import UsageError
from megatron_lite.exchange.origin import open_foreign


def parse_aligned(description: str, algorithm: Algorithm, argv: Sequence[str] | None = None) -> AlignedConfig:
    """`CONFIG.yaml [key=value ...] [--print-config]`. Raises UsageError."""
    arguments = command_line(description, describe_keys(AlignedConfig), "optim.lr=1e-5").parse_args(argv)
    config = config_of(load_tree(arguments.config, arguments.overrides), algorithm)
    if arguments.print_config:
        print_config(config)
    return config


def config_of(tree: Mapping[str, Any], algorithm: Algorithm) -> AlignedConfig:
    """Of a tree in which the algorithm's section and the model may be missing. Raises UsageError."""
    filled = {**tree, algorithm: tree.get(algorithm) or {}}
    section = tree.get("checkpoint")
    init = section.get("init") if isinstance(section, dict) else None
    if tree.get("model") is None and isinstance(init, str):
        filled["model"] = model_of(init)
    config = config_from_tree(filled)
    assert isinstance(config, AlignedConfig)  # it has an algorithm's section
    return config


def model_of(init: str) -> dict[str, Any]:
    """The model of what a run begins from. Raises UsageError where that cannot be read."""
    source = open_foreign(init)
    if source is not None:
        return source.model.model_dump(mode="json")
    found = config_to_resume(Path(init), init)
    if found is None:
        raise UsageError(f"checkpoint.init = {init}: no index of its checkpoints can be read")
    return dict(found[1]["model"])
