"""A model on a mesh as a language model: logits of the next token, and what given tokens are worth, beside a cache.

The units are the training's, around its very weights, but divide no positions (`undivided`). Every rank of one tensor x
pipeline grid makes the same calls with the same tokens; data and context ranks are replicas of that, with sequences of
their own, as many as they like, and never wait for each other. Weights must be there, all of them, for as long as one
generates: `with held(model.stage.shards)`, which all replicas enter and leave together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_lite.checkpoint import Checkpoint, load_weights
from megatron_lite.config import Config, config_from_tree, resolve
from megatron_lite.errors import DataError, UsageError
from megatron_lite.inference.cache import Cache, slice_of
from megatron_lite.inference.stage_pass import from_end, run_stages
from megatron_lite.kernels.choice import kernels_of
from megatron_lite.mesh import Mesh
from megatron_lite.model.build import build_stage, choice_of, undivided
from megatron_lite.model.freezing import NOTHING
from megatron_lite.model.heads import Head
from megatron_lite.model.model import Model
from megatron_lite.model.outputs import Outputs
from megatron_lite.parallel.pipeline.messages import Message
from megatron_lite.parallel.pipeline.stage import Stage
from megatron_lite.parallel.statistics import DISTRIBUTION

ALONE = {"zero_regather": "step"}  # of one process: it gathers nothing, and its weights stay


@dataclass(frozen=True)
class LanguageModel:
    """`stage` has undivided units. Tokens outside, positions and caches are [B, ...]; new tokens int64 [B, T] stand at
    `positions` [B, T], all below `end`. What comes before them must be in the cache, which then holds them too.

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

    def new_cache(self, batch: int, capacity: int) -> Cache:
        return Cache(self.stage, batch, capacity)

    def hidden(self, tokens: Tensor, positions: Tensor, end: int, cache: Cache) -> Tensor | None:
        """What the head takes, [T, B, H], where the model ends; None on other stages.

        Raises RuntimeError, on every rank, for weights that are not held.
        """
        if not all(shards.held for shards in self.stage.shards):
            raise RuntimeError("generating takes weights that stay: with held(model.stage.shards)")
        rows, length = tokens.shape
        new = slice_of(positions, end, self.config.model, self.dtype)
        message = Message((length, rows, self.config.model.hidden_size), self.dtype, self.device)
        return run_stages(self.stage, self.mesh.edges, tokens.t().contiguous(), new, cache, message)

    @torch.no_grad()
    def next_logits(self, tokens: Tensor, positions: Tensor, last: Tensor, end: int, cache: Cache) -> Tensor | None:
        """Logits [B, V] after the new token `last[b]` of each row, where the model ends, the same on its tensor ranks;
        None on other stages. What is drawn from them there, `everywhere` brings to all.

        V is the vocabulary without its padding.
        """
        x = self.hidden(tokens, positions, end, cache)
        if x is None:
            return None
        x = x[last, torch.arange(len(last), device=x.device)]
        local = self._head().logits(x.unsqueeze(0))
        ranks = self.mesh.tensor.all_gather(local, "decode.logits").wait()  # [tp, B, V/tp]
        return ranks.transpose(0, 1).flatten(1)[:, : self.config.model.vocab_size]

    @torch.no_grad()
    def score(self, tokens: Tensor, positions: Tensor, labels: Tensor, end: int, cache: Cache) -> Outputs:
        """What labels int64 [B, T] are worth after the new tokens, each [B, T], on every stage: log-probabilities, and
        whether nothing is more likely. Labels outside the vocabulary do not count.
        """
        x, made = self.hidden(tokens, positions, end, cache), None
        if x is not None:
            head = self._head()
            made = head.per_token(head.hidden(x, 1.0), labels.t().contiguous(), DISTRIBUTION).transpose(1, 2)
        exact = torch.promote_types(self.dtype, torch.float32)
        message = Message((DISTRIBUTION.count, *tokens.shape), exact, self.device)
        return Outputs(*from_end(made, self.mesh.edges, message))

    def everywhere(self, chosen: Tensor | None, batch: int) -> Tensor:
        """Tokens int64 [B] that were chosen where the model ends, on every stage; elsewhere `chosen` is None."""
        return from_end(chosen, self.mesh.edges, Message((batch,), torch.int64, self.device))

    def _head(self) -> Head:
        """Where the model ends."""
        head = self.stage.units[-1]
        assert isinstance(head, Head)  # the configuration says so
        return head


def language_model_of(model: Model) -> LanguageModel:
    """Around the weights of a model that is trained, or only asked; they are not copied."""
    return LanguageModel(model.config, model.undivided(), model.mesh)


def load_model(checkpoint: Checkpoint, mesh: Mesh) -> LanguageModel:
    """The checkpoint's model in the dtype it was trained in, held for good. `mesh` is one process. Raises DataError."""
    config = single_process_config(checkpoint.index.config)
    resolved = resolve(config, world_size=1)
    kernels = kernels_of(choice_of(config, mesh.device.type))
    stage = build_stage(config, resolved, mesh, kernels, NOTHING)
    load_weights(checkpoint, config.model, stage, mesh)
    for shards in stage.shards:
        shards.wait_gather()
    return LanguageModel(config, undivided(stage, config, resolved, mesh), mesh)


def single_process_config(tree: Mapping[str, Any]) -> Config:
    """A run's configuration with one process for its layout, and auto for kernels that another machine may lack."""
    try:
        config = config_from_tree({**tree, "parallel": ALONE})
    except UsageError as error:
        raise DataError(f"the checkpoint's configuration cannot be used here: {error}") from None
    backend = "torch" if config.kernels.backend == "torch" else "auto"
    kernels = config.kernels.model_copy(update={"backend": backend, "attention": "auto"})
    return config.model_copy(update={"kernels": kernels, "optim": config.optim.model_copy(update={"backend": "auto"})})
