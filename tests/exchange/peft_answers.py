"""What PEFT makes of adapters on a small base: run as a script with a folder that holds `base`, float64.

python peft_answers.py FOLDER       FOLDER/KIND as PEFT saves it, and FOLDER/answers.json
"""

import json
import sys
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
PLAIN = {"r": 3, "lora_alpha": 5, "lora_dropout": 0.25, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
KINDS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "rank-stabilized": {**PLAIN, "use_rslora": True},
    "all-linear": {**PLAIN, "target_modules": "all-linear"},
    "scalar": {**PLAIN, "task_type": "SEQ_CLS"},
}
IDS = [(7 * place * place + 3 * place + 1) % 61 for place in range(16)]


def value_of(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers by name and place, the same in every program."""
    phase = sum(map(ord, name)) % 97
    return 0.3 * torch.sin(0.7 * torch.arange(prod(shape), dtype=torch.float64) + phase).view(shape)


def numbers_of(tensor: Tensor) -> list[float]:
    """Two that any change of any element changes: its norm, and its product with fixed weights."""
    flat = tensor.detach().double().flatten()
    return [flat.norm().item(), (flat * torch.cos(torch.arange(len(flat), dtype=torch.float64))).sum().item()]


def answers_of(folder: Path, kind: str) -> dict[str, Any]:
    import peft
    import transformers

    scalar = kind == "scalar"
    name = "AutoModelForSequenceClassification" if scalar else "AutoModelForCausalLM"
    more = {"num_labels": 1, "pad_token_id": 0} if scalar else {}
    base = getattr(transformers, name).from_pretrained(folder / "base", dtype=torch.float64, **more)
    model = peft.get_peft_model(base, peft.LoraConfig(**KINDS[kind])).double().eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = value_of(name.replace(".default", "").replace("modules_to_save.", ""), parameter.shape)
    ids = torch.tensor([IDS])
    logits = model(ids, use_cache=False).logits
    loss = logits.sum() if scalar else torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    loss.backward()
    model.save_pretrained(folder / kind)
    from safetensors.torch import load_file

    saved = load_file(folder / kind / "adapter_model.safetensors")
    gradients = {
        name.replace(".default", "").replace("modules_to_save.", ""): numbers_of(parameter.grad)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    config = json.loads((folder / kind / "adapter_config.json").read_text())
    return {
        "config": {**config, "base_model_name_or_path": None, "target_modules": sorted(config["target_modules"])},
        "shapes": {name: list(tensor.shape) for name, tensor in sorted(saved.items())},
        "logits": numbers_of(logits), "last": logits.flatten()[-5:].tolist(), "loss": loss.item(),
        "gradients": dict(sorted(gradients.items())),
    }  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    made = {kind: answers_of(folder, kind) for kind in KINDS}
    (folder / "answers.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
