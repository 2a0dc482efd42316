"""The embedding's backward in plain PyTorch; kernels/embedding.py says what it computes.

On a CPU `index_add_` adds one row after another, in order: as deterministic as the kernel.
"""

from torch import Tensor


def embedding_backward_(gradient: Tensor, tokens: Tensor, dy: Tensor) -> None:
    tokens, rows = tokens.reshape(-1), dy.reshape(-1, dy.shape[-1])
    ours = ((tokens >= 0) & (tokens < gradient.shape[0])).nonzero().squeeze(-1)
    if len(ours) < len(tokens):
        tokens, rows = tokens[ours], rows.index_select(0, ours)
    gradient.index_add_(0, tokens, rows.to(gradient.dtype))
