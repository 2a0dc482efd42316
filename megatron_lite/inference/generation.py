"""Prompts in, continuations out: the prompt at once, then a token at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lite.errors import UsageError
from megatron_lite.inference.cache import Cache
from megatron_lite.inference.model import LanguageModel
from megatron_lite.inference.sampling import Sampling, choose


@dataclass(frozen=True)
class Limits:
    """When a continuation ends: after so many tokens, or at `eod`. Only ids below `vocab_size` are ever drawn."""

    max_new_tokens: int
    eod: int | None = None
    vocab_size: int | None = None


def generate(model: LanguageModel, prompts: Sequence[Sequence[int]], sampling: Sampling, limits: Limits,
             seed: int = 0) -> list[list[int]]:  # fmt: skip
    """A continuation of each prompt, without the prompt and without the end-of-document token.

    Ends at the model's longest sequence at the latest. Every rank of a tensor x pipeline grid calls it with the same,
    and gets the same. Raises UsageError for an empty prompt or one without room.
    """
    _check(model, prompts, limits)
    generator = torch.Generator(model.device).manual_seed(seed)
    longest = max(map(len, prompts))
    cache = model.new_cache(len(prompts), min(longest + limits.max_new_tokens, model.longest))
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    logits = _prefill(model, prompts, lengths, cache)
    found: list[list[int]] = [[] for _ in prompts]
    going = [True] * len(prompts)
    for step in range(limits.max_new_tokens):
        drawn = None if logits is None else choose(logits[:, : limits.vocab_size], sampling, generator)
        chosen = model.everywhere(drawn, len(prompts))
        for row, token in enumerate(chosen.tolist()):
            going[row] = going[row] and token != limits.eod and len(prompts[row]) + step < model.longest
            if going[row]:
                found[row].append(token)
        if not any(going) or step + 1 == limits.max_new_tokens:
            break
        # A finished row goes on beside the others, unread, in slots that exist.
        positions = (lengths + step).clamp(max=model.longest - 1)
        end = min(longest + step + 1, model.longest)
        logits = model.next_logits(chosen[:, None], positions[:, None], torch.zeros_like(lengths), end, cache)
    return found


def _prefill(model: LanguageModel, prompts: Sequence[Sequence[int]], lengths: Tensor, cache: Cache) -> Tensor | None:
    """All prompts in one pass, short ones filled up at the end, where nothing of theirs looks."""
    longest = int(lengths.max())
    tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=model.device)
    positions = torch.arange(longest, device=model.device).expand(len(prompts), -1)
    return model.next_logits(tokens, positions, lengths - 1, longest, cache)


def _check(model: LanguageModel, prompts: Sequence[Sequence[int]], limits: Limits) -> None:
    if limits.max_new_tokens < 1:
        raise UsageError(f"max_new_tokens = {limits.max_new_tokens}: must be 1 or more")
    for prompt in prompts:
        if not 0 < len(prompt) < model.longest:
            raise UsageError(
                f"the prompt has {len(prompt)} tokens: must have 1 to {model.longest - 1}, "
                f"since the model was trained on sequences of {model.longest}"
            )
        if wrong := [token for token in prompt if not 0 <= token < model.config.model.vocab_size]:
            raise UsageError(
                f"the prompt holds token id {wrong[0]}: model.vocab_size = {model.config.model.vocab_size}"
            )
