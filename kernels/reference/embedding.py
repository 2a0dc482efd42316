"""The embedding's backward in plain PyTorch; kernels/embedding.py says what it computes."""

from torch import Tensor


def embedding_backward_(gradient: Tensor, tokens: Tensor, dy: Tensor) -> None:
    tokens, rows = tokens.reshape(-1), dy.reshape(-1, dy.shape[-1])
    others = (tokens < 0) | (tokens >= gradient.shape[0])
    # Another rank's rows add nothing to the first: how many there are is not asked, for that would wait for the device.
    rows = rows.to(gradient.dtype, copy=True).masked_fill_(others.unsqueeze(-1), 0.0)
    gradient.index_add_(0, tokens.masked_fill(others, 0), rows)
