"""Prompts in, continuations out."""

from collections.abc import Sequence

from megatron_lite.inference.engine import Engine
from megatron_lite.inference.model import LanguageModel
from megatron_lite.inference.requests import Limits, Request
from megatron_lite.inference.sampling import Sampling
from megatron_lite.inference.scheduler import Sizes

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


def sizes_for(requests: Sequence[Request], longest: int) -> Sizes:
    """With which none of them ever gives way to another."""
    lengths = (min(len(r.prompt) + r.limits.max_new_tokens, longest) for r in requests for _ in range(r.n))
    running = sorted(lengths, reverse=True)[:ROWS]
    one = Sizes(1)
    # Whoever is let in leaves each that runs a block to grow into.
    blocks = sum(map(one.blocks_of, running)) + len(running)
    return Sizes(max(blocks, 1))
