"""What transformers makes of prompts, each by itself: run with a peer's packages first on the path.

    smollm2_truth.py HF_DIR PROMPTS.jsonl NEW_TOKENS TRUTH.safetensors

Of prompt N: its ids [T], float32 logits [T, V], greedy new tokens, and by how much each's logit leads the next best.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def truth_of(model, ids: Tensor, count: int) -> dict[str, Tensor]:
    made = model.generate(
        ids[None], attention_mask=torch.ones_like(ids)[None], do_sample=False, max_new_tokens=count,
        return_dict_in_generate=True, output_logits=True, pad_token_id=0,
    )  # fmt: skip
    best = torch.cat(made.logits).topk(2, -1).values
    tokens = made.sequences[0, len(ids) :]
    return {"ids": ids, "logits": model(ids[None]).logits[0], "tokens": tokens, "leads": best[:, 0] - best[:, 1]}


def main() -> None:
    path, prompts, count, output = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # text goes on after it, so that all have as much to compare
    found = {}
    for number, line in enumerate(Path(prompts).read_text(encoding="utf-8").splitlines()):
        ids = torch.tensor(tokenizer(json.loads(line)["prompt"]).input_ids)
        found |= {f"{name} {number}": tensor for name, tensor in truth_of(model, ids, int(count)).items()}
    save_file(found, output)


if __name__ == "__main__":
    main()
