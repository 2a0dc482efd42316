"""The embedding's backward: each row of the gradient gets the gradients of those positions that looked it up.

Tokens are sorted, so that a row's positions follow one another; the first of them adds up all, in order, and no two
programs write to one row: the same bits in every run and on every GPU.
"""

import torch
import triton
import triton.language as tl
from megatron_lite.kernels.checks import FLOATS, check
from megatron_lite.kernels.launch import Launch, accumulator, on_every_target, options_for, rows_of
from megatron_lite.kernels.registration import operation

BLOCK = 1024

ADD = on_every_target(Launch(4), gfx942=Launch(2))


@triton.jit
def add_kernel(gradient, tokens, ends, order, dy, gradient_stride, dy_stride, vocabulary,
               COLUMNS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    first = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens + first)
    previous = tl.load(tokens + tl.maximum(first - 1, 0))
    if (token < 0) | (token >= vocabulary) | ((first > 0) & (token == previous)):
        return
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < COLUMNS
    total = tl.zeros([BLOCK], ACC)
    # The end is looked up, not run into: the compiler can then load several rows at once.
    for place in range(first, tl.load(ends + first)):
        row = tl.load(order + place)
        total += tl.load(dy + row * dy_stride + column, mask=inside, other=0.0).to(ACC)
    target = gradient + token * gradient_stride + column
    tl.store(target, tl.load(target, mask=inside, other=0.0) + total, mask=inside)


@operation("embedding_backward_(Tensor(a!) gradient, Tensor tokens, Tensor dy) -> ()", lambda *_: None)
def embedding_backward_(gradient, tokens, dy):
    """gradient [V, H] += dy[i] at row tokens[i], for tokens [..] int64 and dy [.., H] of any float dtype.

    The gradient is float32 or float64, its last dimension must have stride 1; sums are in its dtype. Tokens outside
    [0, V) are another rank's and are skipped.
    """
    name = "embedding_backward_"
    check(name, "gradient", gradient, gradient, dtype=(torch.float32, torch.float64))
    if gradient.dim() != 2 or gradient.stride(1) != 1:
        raise ValueError(
            f"{name}: gradient has shape {list(gradient.shape)} and strides {list(gradient.stride())}, "
            "must be [V, H] and have stride 1 along H"
        )
    check(name, "tokens", tokens, gradient, dtype=torch.int64)
    columns = gradient.shape[1]
    check(name, "dy", dy, gradient, (*tokens.shape, columns), FLOATS)
    if not dy.numel():
        return
    values, order = tokens.reshape(-1).sort(stable=True)
    ends = torch.searchsorted(values, values, right=True)
    rows = rows_of(dy)
    add_kernel[(len(values), triton.cdiv(columns, BLOCK))](
        gradient, values, ends, order, rows, gradient.stride(0), rows.stride(0), gradient.shape[0],
        columns, BLOCK, accumulator(gradient.dtype),
        **options_for(ADD, gradient.device),
    )  # fmt: skip
