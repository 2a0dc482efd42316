"""A model on a mesh as a language model: logits of the next token, and what given tokens are worth, beside a cache.

The units are the training's, around its very weights, but divide no positions (`undivided`). Every rank of one tensor x
pipeline grid makes the same calls with the same tokens; data and context ranks are replicas of that, with sequences of
their own, as many as they like, and never wait for each other. Weights must be there, all of them, for as long as one
generates: `with held(model.stage)`, which all replicas enter and leave together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lite.config import Config
from megatron_lite.errors import UsageError
from megatron_lite.inference.new_tokens import NewTokens, new_tokens
from megatron_lite.inference.paged_cache import PagedCache
from megatron_lite.inference.scheduler import Row, Sizes
from megatron_lite.inference.stage_pass import from_end, run_stages
from megatron_lite.mesh import Mesh
from megatron_lite.model.heads import Head
from megatron_lite.model.model import Model
from megatron_lite.model.outputs import Outputs
from megatron_lite.parallel.pipeline.messages import Message
from megatron_lite.parallel.pipeline.stage import Stage
from megatron_lite.parallel.statistics import DISTRIBUTION


@dataclass(frozen=True)
class LanguageModel:
    """`stage` has undivided units. New tokens come as rows of a step (scheduler.py), T in all; what stands before a
    row's must be in the cache, which then holds them too.

    Raises UsageError for a model that ends in a scalar.
    """

    config: Config
    stage: Stage
    mesh: Mesh

    def __post_init__(self) -> None:
        if self.config.model.head != "logits":
            raise UsageError(f"model.head = {self.config.model.head}: must be logits, to generate and to score tokens")

    @property
    def longest(self) -> int:
        """Positions that training saw; past them rotary angles are new to the model."""
        return self.config.train.sequence_length

    @property
    def dtype(self) -> torch.dtype:
        return self.stage.shards[0].numerics.compute

    @property
    def device(self) -> torch.device:
        return self.mesh.device

    def new_cache(self, sizes: Sizes) -> PagedCache:
        """Of this rank's heads in this stage's blocks, for sequences as long as the model knows."""
        return PagedCache(self.stage, self.config.model, sizes, self.stage.shards[0].numerics, self.longest)

    @torch.no_grad()
    def hidden(self, rows: Sequence[Row], cache: PagedCache) -> Tensor | None:
        """What the head takes, [T, H], row after row, where the model ends; None on other stages."""
        new = new_tokens(rows, cache.form)
        x = self._run(new, cache)
        return None if x is None else x[new.place, 0]

    @torch.no_grad()
    def next_logits(self, rows: Sequence[Row], cache: PagedCache) -> Tensor | None:
        """Logits [draws, V] of each row's next token, if it draws one, where the model ends, the same on its tensor
        ranks; None on other stages. What is made of them there, `everywhere` brings to all.

        V is the vocabulary without its padding.
        """
        new = new_tokens(rows, cache.form)
        x = self._run(new, cache)
        if x is None:
            return None
        if not len(new.last):
            return x.new_empty(0, self.config.model.vocab_size)
        return self._logits(x[new.last])

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor | None:
        """Logits [T, V] after each token int64 [T] of one sequence, from its beginning on; None where the model does
        not end.
        """
        count = len(tokens)
        sizes = Sizes(blocks=-(-count // 16), budget=max(count, 64))
        row = Row(0, tuple(tokens.tolist()), 0, tuple(range(count)), tuple(range(sizes.blocks)), draws=False)
        x = self.hidden([row], self.new_cache(sizes))
        return None if x is None else self._logits(x.unsqueeze(1))

    def _logits(self, x: Tensor) -> Tensor:
        """Of [T, 1, H], the same on every tensor rank, without padding."""
        local = self._head().logits(x)
        ranks = self.mesh.tensor.all_gather(local.squeeze(1).unsqueeze(0), "decode.logits").wait()  # [tp, T, V/tp]
        return ranks.transpose(0, 1).flatten(1)[:, : self.config.model.vocab_size]

    @torch.no_grad()
    def score(self, rows: Sequence[Row], labels: Tensor, cache: PagedCache) -> Outputs:
        """What labels int64 [T], row after row, are worth after the new tokens, as `score_at` has it."""
        return self.score_at(rows, torch.arange(len(labels), device=self.device), labels, cache)

    @torch.no_grad()
    def score_at(self, rows: Sequence[Row], places: Tensor, labels: Tensor, cache: PagedCache) -> Outputs:
        """What labels int64 [L] are worth after the new tokens at places int64 [L], counted row after row, each [L], on
        every stage: log-probabilities, and whether nothing is more likely. Labels outside the vocabulary do not count.
        A place may have several labels, or none, and then the head does not see it.
        """
        new = new_tokens(rows, cache.form)
        x, made = self._run(new, cache), None
        if x is not None and len(places):
            head = self._head()
            h = head.hidden(x[new.place[places]], 1.0)
            made = head.per_token(h, labels.unsqueeze(1), DISTRIBUTION).squeeze(-1)
        elif x is not None:
            made = x.new_empty(DISTRIBUTION.count, 0, dtype=self._exact)
        return Outputs(*self.everywhere(made, (DISTRIBUTION.count, len(labels)), self._exact))

    @property
    def _exact(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def everywhere(self, made: Tensor | None, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """What was made where the model ends, on every stage, which all know its form; elsewhere `made` is None."""
        return from_end(made, self.mesh.edges, Message(size, dtype, self.device))

    def _run(self, new: NewTokens, cache: PagedCache) -> Tensor | None:
        """[T, 1, H] where the model ends. Raises RuntimeError, on every rank, for weights that are not held."""
        if not all(shards.held for shards in self.stage.shards):
            raise RuntimeError("generating takes weights that stay: with held(model.stage)")
        message = Message((len(new.tokens), 1, self.config.model.hidden_size), self.dtype, self.device)
        return run_stages(self.stage, self.mesh.edges, new, cache, message)

    def _head(self) -> Head:
        """Where the model ends."""
        head = self.stage.units[-1]
        assert isinstance(head, Head)  # the configuration says so
        return head


def language_model_of(model: Model) -> LanguageModel:
    """Around the weights of a model that is trained, or only asked; they are not copied."""
    return LanguageModel(model.config, model.undivided(), model.mesh)
