"""Adapters on small bases of every kind, and what a plain model makes of the two together."""

from pathlib import Path

import torch
from exchange.models import Weights, weights_of, write_gguf, write_hf
from support import reference
from support.checkpoints import untrained
from support.layouts import Layout, assemble, owned_blocks, stir
from torch import Tensor

from megatron_lite.config import Config, LoraConfig, ModelConfig
from megatron_lite.exchange import convert
from megatron_lite.exchange.origin import begin, open_origin
from megatron_lite.inference.model import language_model_of
from megatron_lite.parallel.pipeline.stage import held
from megatron_lite.training.step import Trainer

LORA = LoraConfig(rank=3, alpha=4.5, targets=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
LAYOUT = Layout(layers=2, lora=LORA)
IDS = torch.randint(0, 61, (16,), generator=torch.Generator().manual_seed(1))  # as long as the model was trained
KINDS = ("ours", "hf", "gguf")


def base_weights(model: ModelConfig) -> Weights:
    """float32, and small enough for losses that mean something."""
    return {name: w if w.dim() == 1 else w / 3 for name, w in weights_of(model).items()}


def write_base(directory: Path, kind: str, model: ModelConfig) -> Path:
    """One model, as a checkpoint of ours, a Hugging Face directory or a GGUF file."""
    if kind == "gguf":
        return write_gguf(directory.with_suffix(".gguf"), model, base_weights(model))
    path = write_hf(directory / "hf" if kind == "ours" else directory, model, base_weights(model))
    if kind == "ours":
        convert(path, directory / "ours", "ours")
    return directory / "ours" if kind == "ours" else directory


def adapted(layout: Layout, base: Path, config: Config | None = None) -> Trainer:
    """Begun from a base, with adapters that matter."""
    trainer = untrained(layout, config=config)
    trainer.base = begin(open_origin(base, trainer.mesh), trainer)
    stir(trainer.model)
    return trainer


def weights_in(trainer: Trainer) -> dict[str, Tensor]:
    """Logical weights of one process, with A and B, in float64."""
    found = assemble([owned_blocks(trainer, "values", trainer.stage.shards)])
    return {name: torch.from_numpy(weight) for name, weight in found.items()}


def merged_by_hand(weights: dict[str, Tensor], lora: LoraConfig) -> dict[str, Tensor]:
    """W + alpha / r B A in float64."""
    found = {name: weight for name, weight in weights.items() if ".lora_" not in name}
    for name, weight in weights.items():
        if name.endswith("lora_A.weight"):
            stem = name.removesuffix("lora_A.weight")
            product = weights[f"{stem}lora_B.weight"].double() @ weight.double()
            found[f"{stem}weight"] = found[f"{stem}weight"].double() + lora.alpha / lora.rank * product
    return found


def unmerged_logits(trainer: Trainer, ids: Tensor = IDS) -> Tensor:
    """[T, V] in the units that train, with adapters beside each product."""
    with held(trainer.stage):
        return language_model_of(trainer.model).logits(ids)


def plain_logits(weights: dict[str, Tensor], model: ModelConfig, ids: Tensor = IDS) -> Tensor:
    """[T, V] of a plain model in float64."""
    return reference.logits({name: weight.double() for name, weight in weights.items()}, ids[None], model)[0]
