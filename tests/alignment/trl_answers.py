"""`python trl_answers.py FOLDER`: what trl's trainers make of the weights and rows in FOLDER (extra trl).

FOLDER/given.json has a model's fields, settings and rows of token ids, FOLDER/KIND.safetensors each trainer's first
weights. It writes FOLDER/KIND.answers.safetensors: losses [steps], outputs (log-probabilities of the longest row's
tokens, before training), and by parameter `gradient NAME` of step 1 and `weight NAME` after the last. Every default of
trl that differs from plain AdamW at a constant rate is set.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

WRAPPED = (("base_model.model.", ""), (".base_layer", ""), (".default", ""))  # peft's names, and ours


def name_of(parameter: str) -> str:
    for theirs, ours in WRAPPED:
        parameter = parameter.replace(theirs, ours)
    return parameter


class FirstGradients(TrainerCallback):
    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == 0:
            trained = {name: one for name, one in rest["model"].named_parameters() if one.requires_grad}
            self.found = {name_of(name): one.grad.clone() for name, one in trained.items()}


def tokenizer_of(given: dict[str, Any]) -> PreTrainedTokenizerFast:
    """A word for each id; END and padding are not the same, since trl's reward model looks for padding."""
    words = {word(number, given): number for number in range(given["model"]["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=word(1, given)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=word(given["end"], given), pad_token=word(0, given)
    )


def word(number: int, given: dict[str, Any]) -> str:
    return "</s>" if number == given["end"] else f"w{number}"


def text(ids: list[int], given: dict[str, Any]) -> str:
    return " ".join(word(number, given) for number in ids)


def model_of(kind: str, given: dict[str, Any], weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    shape = LlamaConfig(**given["model"], eos_token_id=given["end"], pad_token_id=0, bos_token_id=None, num_labels=1)
    made = (LlamaForSequenceClassification if kind == "reward" else LlamaForCausalLM)(shape).float()
    plain = {name: one for name, one in weights.items() if ".lora_" not in name}
    made.load_state_dict(plain)
    if kind != "lora":
        return made
    lora = given["lora"]
    adapted = get_peft_model(
        made, LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=lora["targets"], lora_dropout=0.0)
    )
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.data.copy_(weights[name_of(name)])
    return adapted


def trainer_of(kind: str, given: dict[str, Any], weights: dict[str, torch.Tensor], folder: Path) -> Any:
    tokenizer, rows, rate = tokenizer_of(given), given["rows"], given["rate"]
    settings = {
        "output_dir": str(folder / "trl"), "max_steps": given["steps"], "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "learning_rate": rate, "lr_scheduler_type": "constant", "warmup_steps": 0,
        "weight_decay": 0.0, "max_grad_norm": 0.0, "adam_epsilon": 1e-8, "adam_beta2": 0.999, "optim": "adamw_torch",
        "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "train_sampling_strategy": "sequential",
        "logging_steps": 1, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "seed": 0,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    shared = {"model": model_of(kind, given, weights), "processing_class": tokenizer}
    if kind in ("sft", "lora"):
        data = [
            {"input_ids": one["prompt"] + one["chosen"], "labels": [-100] * len(one["prompt"]) + one["chosen"]}
            for one in rows
        ]
        return trl.SFTTrainer(args=trl.SFTConfig(**settings), train_dataset=Dataset.from_list(data), **shared)
    if kind == "reward":
        data = [
            {"chosen_ids": one["prompt"] + one["chosen"], "rejected_ids": one["prompt"] + one["rejected"],
             "margin": one["margin"]}
            for one in rows
        ]  # fmt: skip
        arguments = trl.RewardConfig(**settings, center_rewards_coefficient=given["centring"])
        return trl.RewardTrainer(args=arguments, train_dataset=Dataset.from_list(data), **shared)
    data = [
        {"prompt": text(one["prompt"], given), "chosen": " " + text(one["chosen"], given),
         "rejected": " " + text(one["rejected"], given)}
        for one in rows
    ]  # fmt: skip
    arguments = trl.DPOConfig(**settings, beta=given["beta"], loss_type=["ipo" if kind == "ipo" else "sigmoid"])
    reference = model_of(kind, given, weights)
    return trl.DPOTrainer(ref_model=reference, args=arguments, train_dataset=Dataset.from_list(data), **shared)


@torch.no_grad()
def outputs_of(model: torch.nn.Module, rows: list[dict[str, Any]]) -> torch.Tensor:
    ids = torch.tensor([max((row["prompt"] + row["chosen"] for row in rows), key=len)])
    logs = model.eval()(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    model.train()
    return logs.gather(1, ids[0, 1:, None])[:, 0]


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    given = json.loads((folder / "given.json").read_text())
    for kind in given["kinds"]:
        trainer = trainer_of(kind, given, load_file(folder / f"{kind}.safetensors"), folder)
        outputs = torch.empty(0) if kind == "reward" else outputs_of(trainer.model, given["rows"])
        first = FirstGradients()
        trainer.add_callback(first)
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        answers = {"losses": torch.tensor(losses, dtype=torch.float64), "outputs": outputs}
        answers |= {f"gradient {name}": one.contiguous() for name, one in first.found.items()}
        trained = {name_of(name): one for name, one in trainer.model.named_parameters() if one.requires_grad}
        answers |= {f"weight {name}": one.detach().contiguous() for name, one in trained.items()}
        save_file(answers, folder / f"{kind}.answers.safetensors")


if __name__ == "__main__":
    main()
