"""What a model makes of prompts here, in float32, on a layout: run by torchrun.

    smollm2_ours.py CHECKPOINT PROMPTS.jsonl NEW_TOKENS DIRECTORY [parallel.tensor=3 ...]

Each rank where the model ends writes ids and logits of its replica's prompts, logits_RANK.safetensors; the first one
writes the greedy answers of all, answers.jsonl.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from megatron_lite.generate import answer, write
from megatron_lite.inference.engine import share_of
from megatron_lite.inference.generation import ROWS
from megatron_lite.inference.opening import Asked, opened_model
from megatron_lite.inference.requests import Limits, Request
from megatron_lite.inference.sampling import Sampling
from megatron_lite.inference.text import read_prompts


def main() -> None:
    path, prompts_path, count, directory, *overrides = sys.argv[1:]
    with opened_model(Asked(path, tuple(overrides), dtype="float32", device="cpu")) as opened:
        prompts, model = read_prompts(Path(prompts_path), opened.tokenizer, None), opened.model
        found = {}
        for number, prompt in share_of(list(enumerate(prompts)), model.mesh):
            ids = torch.tensor(prompt.ids)
            if (logits := model.logits(ids)) is not None:
                found |= {f"ids {number}": ids, f"logits {number}": logits.contiguous()}
        if found:
            save_file(found, Path(directory) / f"logits_{model.mesh.rank}.safetensors")
        limits = Limits(int(count))  # nothing ends it before
        requests = [Request(number, prompt.ids, limits, Sampling(0.0)) for number, prompt in enumerate(prompts)]
        lines = answer(requests, prompts, opened, ROWS)
        if model.mesh.rank == 0:
            write(lines, Path(directory) / "answers.jsonl")


if __name__ == "__main__":
    main()
