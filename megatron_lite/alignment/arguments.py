"""The command line of what follows pretraining: as pretraining's, with an algorithm's section, and with the model of
`checkpoint.init` where the file has none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_lite.config import AlignedConfig, config_from_tree
from megatron_lite.config.aligned import Algorithm
from megatron_lite.config.load import command_line, describe_keys, load_tree, print_config
from megatron_lite.exchange.origin import glance
from megatron_lite.exchange.source import Source


def parse_aligned(description: str, algorithm: Algorithm, argv: Sequence[str] | None = None) -> AlignedConfig:
    """`CONFIG.yaml [key=value ...] [--print-config]`. Raises UsageError."""
    arguments = command_line(description, describe_keys(AlignedConfig), "optim.lr=1e-5").parse_args(argv)
    config = config_of(load_tree(arguments.config, arguments.overrides), algorithm)
    if arguments.print_config:
        print_config(config)
    return config


def config_of(tree: Mapping[str, Any], algorithm: Algorithm) -> AlignedConfig:
    """Of a tree in which the algorithm's section and the model may be missing. Raises UsageError, and DataError
    where checkpoint.init cannot be read.
    """
    filled = {**tree, algorithm: tree.get(algorithm) or {}}
    section = tree.get("checkpoint")
    init = section.get("init") if isinstance(section, dict) else None
    if tree.get("model") is None and isinstance(init, str):
        found = glance(init)
        filled["model"] = found.model.model_dump(mode="json") if isinstance(found, Source) else dict(found.index.model)
    config = config_from_tree(filled)
    assert isinstance(config, AlignedConfig)  # it has an algorithm's section
    return config
