"""The tokenizer of a run after pretraining, with the chat template that it trains on."""

import hashlib
import logging
from pathlib import Path

from megatron_lite.alignment.template import BUILT_IN, find_template, with_template
from megatron_lite.checkpoint.agreement import together
from megatron_lite.config import AlignedConfig
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError, UsageError
from megatron_lite.exchange.origin import glance
from megatron_lite.files import partial_path, publish
from megatron_lite.inference.text import find_tokenizer
from megatron_lite.mesh import Mesh

log = logging.getLogger("megatron_lite")


def tokenizer_of_run(config: AlignedConfig, mesh: Mesh) -> Tokenizer:
    """`data.tokenizer` or that of checkpoint.init, with `data.chat_template` or its own. All ranks call it.

    Raises UsageError where neither is given, DataError for one that is larger than the model's vocabulary, or whose
    template cannot be trained on.
    """
    data, size = config.data, config.model.vocab_size
    if data.tokenizer is not None:
        found = open_tokenizer(data.tokenizer)
    elif config.checkpoint.init is not None:
        found = find_tokenizer(glance(config.checkpoint.init), None)
    else:
        raise UsageError("data.tokenizer = null: must be a path where there is no checkpoint.init that carries one")
    if found.vocab_size > size:
        raise DataError(
            f"tokenizer {found.path} has {found.vocab_size} tokens, the model's vocab_size is {size}; set "
            f"model.vocab_size to {found.vocab_size} or more"
        )
    if mesh.rank == 0 and data.chat_template is None and found.chat_template is None:
        log.info("tokenizer %s has no chat template: taking the built-in one, %s", found.path, BUILT_IN.name)
    complete = with_template(found, find_template(found, data.chat_template))
    return _as_files(complete, config.cache_dir, mesh)


def _as_files(tokenizer: Tokenizer, cache: Path, mesh: Mesh) -> Tokenizer:
    """The same from a folder in the cache, where workers find it too: what it was taken from may be no tokenizer's."""
    content = dict(sorted(tokenizer.files.content.items()))
    digest = hashlib.sha256(b"".join(name.encode() + b"\0" + text for name, text in content.items())).hexdigest()
    folder = cache / f"tokenizer-{digest[:16]}"
    with together(mesh, "tokenizer.write"):
        for name, text in content.items() if mesh.rank == 0 else ():
            folder.mkdir(parents=True, exist_ok=True)
            partial_path(folder / name).write_bytes(text)
            publish(folder / name)
    return open_tokenizer(folder)
