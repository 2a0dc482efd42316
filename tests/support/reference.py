"""An independent oracle: the same transformer in plain PyTorch modules-free code, autograd and torch.optim, in float64.

It shares nothing with the package but Hugging Face's parameter names.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Which document each position belongs to, and its place there, both [B, T]."""

    documents: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Extras:
    """What training may add. `scale` is that of low-rank adapters, where weights have any; of a batch, `dropout` gives
    what the input of an adapter by the name of its A is multiplied by, [B, T, columns], `noise` what embeddings get.
    """

    scale: float = 1.0
    dropout: Callable[[str, int], Tensor | float] = lambda name, columns: 1.0
    noise: Tensor | float = 0.0


PLAIN = Extras()


def logits(
    weights: dict[str, Tensor], tokens: Tensor, model, packing: Packing | None = None, extras: Extras = PLAIN
) -> Tensor:
    """Tokens [B, T] -> logits [B, T, V]; `model` has Hugging Face's field names."""
    x = hidden(weights, tokens, model, packing, extras)
    head = "model.embed_tokens.weight" if model.tie_word_embeddings else "lm_head.weight"
    return x @ weights[head].T


def hidden(
    weights: dict[str, Tensor], tokens: Tensor, model, packing: Packing | None = None, extras: Extras = PLAIN
) -> Tensor:
    """Past the last norm, [B, T, H]."""
    x = weights["model.embed_tokens.weight"][tokens] + extras.noise

    def linear(x: Tensor, name: str) -> Tensor:
        y = x @ weights[f"{name}.weight"].T
        if (a := f"{name}.lora_A.weight") in weights:
            dropped = x * extras.dropout(a, x.shape[-1])
            y = y + extras.scale * (dropped @ weights[a].T) @ weights[f"{name}.lora_B.weight"].T
        return y

    length, dim = tokens.shape[1], model.head_dim
    unseen = torch.ones(length, length).triu(1).bool()
    places = torch.arange(length)
    if packing is not None:
        unseen = (unseen | (packing.documents[:, :, None] != packing.documents[:, None]))[:, None]
        places = packing.positions[:, None]
    for layer in range(model.num_hidden_layers):
        p = f"model.layers.{layer}."
        h = _norm(x, weights[p + "input_layernorm.weight"], model.rms_norm_eps)
        q, k, v = (_heads(linear(h, f"{p}self_attn.{n}_proj"), dim) for n in "qkv")
        if model.qk_norm:
            q, k = (
                _norm(x, weights[f"{p}self_attn.{n}_norm.weight"], model.rms_norm_eps) for x, n in ((q, "q"), (k, "k"))
            )
        q, k = _rope(q, model.rope_theta, places), _rope(k, model.rope_theta, places)
        repeat = model.num_attention_heads // model.num_key_value_heads
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        scores = q @ k.transpose(-1, -2) / dim**0.5
        scores = scores.masked_fill(unseen, float("-inf"))
        out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(out, p + "self_attn.o_proj")
        h = _norm(x, weights[p + "post_attention_layernorm.weight"], model.rms_norm_eps)
        x = x + linear(F.silu(linear(h, p + "mlp.gate_proj")) * linear(h, p + "mlp.up_proj"), p + "mlp.down_proj")
    return _norm(x, weights["model.norm.weight"], model.rms_norm_eps)


def objective(
    weights: dict[str, Tensor], samples: Tensor, model, z_loss: float, extras: Extras = PLAIN
) -> tuple[Tensor, Tensor]:
    """(mean cross-entropy, mean cross-entropy + z_loss * mean log^2 Z) of samples [B, T + 1]."""
    out = logits(weights, samples[:, :-1], model, extras=extras)
    loss = F.cross_entropy(out.flatten(0, 1), samples[:, 1:].flatten())
    return loss, loss + z_loss * out.logsumexp(-1).square().mean()


def train(
    initial: dict[str, Tensor], batches: list[Tensor], config, rates: list[float],
    extras: list[Extras] | None = None, frozen: dict[str, Tensor] | None = None,
):  # fmt: skip
    """Losses, z-losses, gradient norms, step 1's gradients and the final weights of `torch.optim.AdamW`, clipped; of
    what is trained, with `extras` of each step.
    """
    weights = {name: value.clone().requires_grad_() for name, value in initial.items()}
    matrices = [w for w in weights.values() if w.dim() > 1]
    norms_ = [w for w in weights.values() if w.dim() == 1]
    optim = config.optim
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": norms_, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=optim.betas, eps=optim.eps)
    losses, z_losses, norms, gradients = [], [], [], {}
    for batch, rate, extra in zip(batches, rates, extras or [PLAIN] * len(batches), strict=True):
        optimizer.zero_grad()
        loss, total = objective(weights | (frozen or {}), batch, config.model, config.train.z_loss, extra)
        total.backward()
        if not gradients:
            gradients = {name: w.grad.numpy().copy() for name, w in weights.items()}
        norm = torch.cat([w.grad.flatten() for w in weights.values()]).norm()
        for w in weights.values():
            w.grad.mul_(min(1.0, optim.grad_clip / norm.item()))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
        z_losses.append(total.item() - loss.item())
        norms.append(norm.item())
    return losses, z_losses, norms, gradients, {name: w.detach().numpy() for name, w in weights.items()}


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def _heads(x: Tensor, dim: int) -> Tensor:
    return x.unflatten(-1, (-1, dim)).transpose(1, 2)


def _rope(x: Tensor, theta: float, places: Tensor) -> Tensor:
    """x [B, heads, T, D] as complex pairs (i, i + D/2) times exp(i t theta^(-2i/D)), t of places [.., T]."""
    half = x.shape[-1] // 2
    angle = places.double()[..., None] * theta ** (-torch.arange(half).double() / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), -1)
