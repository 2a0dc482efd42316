"""New tokens through the model's virtual stages, one after the other, each beside its part of a cache: forward alone.

    tokens -> embedding, blocks -> | activations [T, 1, H] | -> blocks -> ...      on one stage or on several
    every stage <- results <- | ... | <- where the model ends                       back through the last chunks

Every tensor rank has all activations, as units of `undivided` do. Between stages these take the channels of training's
activations, and what is made of them at the end goes back on those of gradients: no step runs meanwhile.
"""

import torch
from torch import Tensor

from megatron_lite.inference.new_tokens import NewTokens
from megatron_lite.inference.paged_cache import PagedCache
from megatron_lite.model.transformer import Block, Embedding
from megatron_lite.parallel.pipeline.messages import Edges, Message
from megatron_lite.parallel.pipeline.routes import Channel, received_on, sent_on
from megatron_lite.parallel.pipeline.schedules import Action
from megatron_lite.parallel.pipeline.stage import Stage, Unit
from megatron_lite.parallel.vocabulary import vocabulary_embedding


@torch.no_grad()
def run_stages(stage: Stage, edges: Edges, new: NewTokens, cache: PagedCache, message: Message) -> Tensor | None:
    """What the head takes, [T, 1, H], where the model ends; None on other stages.

    `message` is what passes between stages. All stages call it together.
    """
    x: Tensor | None = None
    for chunk, units in enumerate(stage.chunks):
        place = (Action("F", 0, chunk), edges.placement, edges.stage)
        if (source := received_on(*place)) is not None:
            x = _receive(source, edges, message, "decode.activation")
        # Without a source x is that of this stage's chunk before, or the model begins here.
        for unit in units:
            x = _run(unit, x, new, cache)
        if (target := sent_on(*place)) is not None:
            _send(x, target, edges, "decode.activation")
    return x if edges.stage == edges.placement.ends[1] else None


def from_end(made: Tensor | None, edges: Edges, message: Message) -> Tensor:
    """What was made where the model ends, on every stage. All stages call it together; `message` is its form.

    It goes back as gradients do, through the virtual stages of the last chunk: each stage has one of them.
    """
    chunk = edges.placement.chunks - 1
    place = (Action("B", 0, chunk), edges.placement, edges.stage)
    if (source := received_on(*place)) is not None:
        made = _receive(source, edges, message, "decode.result")
    assert made is not None  # without a source the model ends here
    before = edges.placement.before(edges.stage, chunk)
    if before is not None and before[1] == chunk and (target := sent_on(*place)) is not None:
        _send(made, target, edges, "decode.result")
    return made


def _run(unit: Unit, x: Tensor | None, new: NewTokens, cache: PagedCache) -> Tensor | None:
    """One unit; the head leaves x as it is, for whoever asks for logits or for more."""
    if isinstance(unit, Embedding):
        return vocabulary_embedding(new.tokens.unsqueeze(1), unit.embed, unit.region, anchor=None)
    if isinstance(unit, Block) and x is not None:
        return unit.transform(x, *cache.attention(unit, new))
    return x


def _receive(channel: Channel, edges: Edges, message: Message, site: str) -> Tensor:
    communicator = edges.channels[channel]
    return communicator.receive(message.empty(), 1 - communicator.rank, site).wait()


def _send(x: Tensor | None, channel: Channel, edges: Edges, site: str) -> None:
    assert x is not None  # a virtual stage has units
    communicator = edges.channels[channel]
    communicator.send(x.contiguous(), 1 - communicator.rank, site).wait()
