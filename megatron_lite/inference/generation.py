"""Prompts in, continuations out."""

import json
from collections.abc import Sequence
from dataclasses import replace

import torch

from megatron_lite.inference.engine import Engine
from megatron_lite.inference.model import LanguageModel
from megatron_lite.inference.requests import Limits, Request
from megatron_lite.inference.sampling import Sampling
from megatron_lite.inference.scheduler import Sizes
from megatron_lite.mesh import Mesh

ROWS = 64  # that run at once; the others wait


def generate(model: LanguageModel, prompts: Sequence[Sequence[int]], sampling: Sampling, limits: Limits,
             seed: int = 0) -> list[list[int]]:  # fmt: skip
    """A continuation of each prompt, without the prompt and without the end-of-document token.

    Ends at the model's longest sequence at the latest. Every rank of a tensor x pipeline grid calls it with the same,
    and gets the same. Raises UsageError for an empty prompt or one without room.
    """
    requests = [Request(number, tuple(prompt), limits, sampling, seed) for number, prompt in enumerate(prompts)]
    engine = Engine(model, sizes_for(requests, model.longest))
    return [samples[0].answer for samples in engine.run(requests)]


def sizes_for(requests: Sequence[Request], longest: int, rows: int = ROWS) -> Sizes:
    """With which none of them ever gives way to another, so many at once. Raises UsageError for less than one."""
    one = Sizes(1, rows=rows, budget=max(rows, Sizes.budget))
    lengths = (min(len(r.prompt) + r.limits.max_new_tokens, longest) for r in requests for _ in range(r.n))
    running = sorted(lengths, reverse=True)[:rows]
    # Whoever is let in leaves each that runs a block to grow into.
    blocks = sum(map(one.blocks_of, running)) + len(running)
    return replace(one, blocks=max(blocks, 1))


def gathered(lines: Sequence[str], mesh: Mesh) -> list[list[str]]:
    """The lines of every replica, in order, on the ranks that stand at one place in them. All ranks call it."""
    mine = torch.frombuffer(bytearray(json.dumps(list(lines)).encode()), dtype=torch.uint8).to(mesh.device)
    size = torch.tensor([len(mine)], device=mesh.device)
    sizes = mesh.zero.all_gather(size, "generate.sizes").wait().flatten().tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=mesh.device)
    padded[: len(mine)] = mine
    all_ = mesh.zero.all_gather(padded, "generate.answers").wait().view(mesh.zero.size, -1).cpu()
    return [json.loads(bytes(row[:count].numpy())) for row, count in zip(all_, sizes, strict=True)]
