"""PEFT's directory of an adapter, in and out: adapter_config.json and adapter_model.safetensors.

Its tensors have the names that they have here, behind PREFIX. What is adapted follows from them, not from patterns of
names; a key that would make another function of them is refused by name, and so is one that is not known.
"""

import re
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any, get_args

from megatron_lite.checkpoint import Base
from megatron_lite.config import LoraConfig, ModelConfig
from megatron_lite.config.complaints import show
from megatron_lite.config.load import check_tree
from megatron_lite.config.tree import Target
from megatron_lite.errors import DataError, UsageError
from megatron_lite.exchange.json_files import read_json, write_json
from megatron_lite.exchange.merging import adapted, check_matrices, check_unmerged
from megatron_lite.exchange.source import (
    CARRIED,
    SCORE,
    Adapter,
    Source,
    Stored,
    carried_over,
    fitting,
    without_head,
)
from megatron_lite.exchange.tensor_files import open_metadata, open_tensors, write_tensors
from megatron_lite.files import sync
from megatron_lite.model.parameters import is_adapter

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
KIND = "PEFT directory"
PREFIX = "base_model.model."
BASE = "base_xxh3"  # in the file's metadata, which PEFT does not read: the checksum of what the adapter stands on
# Keys with the values under which LoRA is what it is here; null, and nothing in it, say the same.
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "ensure_weight_tying": (False, True),
    # Others change the base as they begin, so that the adapter does not fit the one that is named.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
CARRIED_KEYS = ("r", "lora_alpha", "lora_dropout", "use_rslora", "base_model_name_or_path", "modules_to_save")
# What says how it was trained or found, or which modules it is on, which the tensors say themselves.
HARMLESS = frozenset(
    """
    auto_mapping inference_mode revision task_type peft_version target_modules exclude_modules layers_pattern
    layers_to_transform megatron_config megatron_core qalora_group_size loftq_config eva_config corda_config
    lora_ga_config runtime_config
    """.split()
)


def base_named_in(path: Path) -> str | None:
    """The path of the model beneath, as the configuration there gives it."""
    return read_json(path / CONFIG).get("base_model_name_or_path")


def checksum_in(path: Path) -> str | None:
    """Of the model beneath, where the directory says it, as those written here do."""
    # Where there are no tensors, opening them says so.
    return open_metadata(path / TENSORS).get(BASE) if (path / TENSORS).is_file() else None


def open_peft(path: Path, base: Source) -> Source:
    """An adapter merged into its base. Raises DataError, in one line that names key or tensor, for what is not LoRA as
    it is here, or is not of this model.
    """
    tree = read_json(path / CONFIG)
    _check_keys(tree, str(path / CONFIG))
    found = _tensors(path)
    matrices = {name: found.pop(name) for name in list(found) if is_adapter(name)}
    lora = _lora(tree, matrices, str(path / CONFIG))
    for name in found:
        if name != SCORE:
            raise DataError(f"{path / TENSORS} has {name} beside the adapter, for which there is no place here")
    model = _model(base.model, scalar=SCORE in found)
    check_matrices(path / TENSORS, model, lora, matrices)
    check_unmerged(path, matrices, base)
    others = fitting(path, model, {**without_head(base.parameters, model), **found})
    own = {name: (path / name).read_bytes() for name in CARRIED if (path / name).is_file()}
    carried = carried_over(own, base.carried)
    left_out = tuple(name for name in ("README.md",) if (path / name).is_file())
    plain = Source(path, KIND, model, base.facts, base.dtype, others, carried, left_out, base.tokenizer)
    return adapted(plain, Adapter(lora, matrices, others, tuple(found), base))


def write_peft(directory: Path, source: Source, base: Base) -> int:
    """A source's adapter into an empty directory, on the Hugging Face directory `base`; returns how many files of
    tensors. Raises DataError for what PEFT's LoRA has no place for.
    """
    adapter, scalar = source.adapter, source.model.head == "scalar"
    assert adapter is not None  # or there would be nothing to write
    if odd := [name for name in adapter.beside if name != SCORE]:
        raise DataError(
            f"{source.path} has {odd[0]} trained beside the adapter, for which PEFT's LoRA has no place: merge it, "
            f"with --to hf"
        )
    tensors = {PREFIX + name: stored for name, stored in source.own.items()}
    write_tensors(directory / TENSORS, tensors, {"format": "pt", BASE: base.xxh3})
    for name, content in source.carried.items():
        (directory / name).write_bytes(content)
        sync(directory / name)
    write_json(directory / CONFIG, config_json(adapter.lora, base.path, scalar))
    return 1


def config_json(lora: LoraConfig, base: str, scalar: bool) -> dict[str, Any]:
    """What PEFT reads as this adapter; keys that are not there have their defaults."""
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if scalar else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets),
        "modules_to_save": ["score"] if scalar else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _check_keys(tree: Mapping[str, Any], where: str) -> None:
    for key, value in tree.items():
        if key in PLAIN:
            if value is not None and value not in PLAIN[key]:
                raise DataError(f"{where}: {key} = {show(value)}: must be {show(PLAIN[key][0])}, as LoRA here is")
        elif key not in CARRIED_KEYS and key not in HARMLESS and value not in (None, False, {}, []):
            raise DataError(f"{where}: {key} = {show(value)}: LoRA here has no such thing")
    if odd := [name for name in tree.get("modules_to_save") or () if name not in ("score", "classifier")]:
        raise DataError(f"{where}: modules_to_save = {show(odd)}: only a scalar head, score, is saved beside adapters")


def _lora(tree: Mapping[str, Any], matrices: Mapping[str, Stored], where: str) -> LoraConfig:
    """`alpha` is such that alpha / rank is the scale there, which use_rslora makes lora_alpha / sqrt(r) (Kalajdzievski
    2023, arXiv 2312.03732, equation 4).
    """
    rank, alpha = tree.get("r", 8), tree.get("lora_alpha", 8)
    if tree.get("use_rslora") and isinstance(rank, int) and isinstance(alpha, int | float):
        alpha = alpha * sqrt(rank)
    found = {match[1] for name in matrices if (match := re.search(r"\.(\w+)\.lora_[AB]\.weight$", name))}
    known = [target for target in get_args(Target) if target in found]
    given = {"rank": rank, "alpha": alpha, "dropout": tree.get("lora_dropout", 0.0)}
    try:
        return check_tree({**given, "targets": known or sorted(found)}, LoraConfig)
    except UsageError as error:
        raise DataError(f"{where}: {error}") from None


def _tensors(path: Path) -> dict[str, Stored]:
    """By their names here."""
    if not (path / TENSORS).is_file():
        pickled = sorted(p.name for p in path.glob("*.bin"))
        what = f"; {pickled[0]} is a pickle, which is not read" if pickled else ""
        raise DataError(f"{path} has no {TENSORS}{what}")
    found = open_tensors(path / TENSORS)
    if odd := [name for name in found if not name.startswith(PREFIX)]:
        raise DataError(f"{path / TENSORS} has {odd[0]}: names of tensors there begin with {PREFIX}")
    return {name.removeprefix(PREFIX): stored for name, stored in found.items()}


def _model(base: ModelConfig, scalar: bool) -> ModelConfig:
    """A score is trained where the adapted model ends in it, whatever its base ends in."""
    if not scalar or base.head == "scalar":
        return base
    return ModelConfig.model_validate({**base.model_dump(), "head": "scalar", "tie_word_embeddings": False})
