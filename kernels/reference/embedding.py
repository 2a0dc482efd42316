"""The embedding's backward in plain PyTorch; kernels/embedding.py says what it computes."""

from torch import Tensor


def embedding_backward_(gradient: Tensor, tokens: Tensor, dy: Tensor) -> None:
    tokens, rows = tokens.reshape(-1), dy.reshape(-1, dy.shape[-1])
    ours = ((tokens >= 0) & (tokens < gradient.shape[0])).nonzero().squeeze(-1)
    # Another rank's rows are not converted; the others are added one after another, in order.
    gradient.index_add_(0, tokens[ours], rows[ours].to(gradient.dtype))
