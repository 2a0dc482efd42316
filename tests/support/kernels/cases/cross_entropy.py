"""Cross-entropy's local pieces: (.., columns, real); rows shorter than a tile and longer, padding, nothing real."""

import torch
from megatron_lite.kernels import costs, cross_entropy
from megatron_lite.kernels.reference import cross_entropy as reference
from support.kernels.harness import Case, exact_of, random

# 16,000 columns are the 65B model's; 4,100 = 2 tiles and a tail; with (2, 6200, 50) two tiles are padding alone.
SIZES = [(5, 123, 123), (3, 2, 48, 37), (1, 2048, 2048), (7, 4100, 4097), (2, 6200, 50), (3, 16000, 16000), (2, 40, 0)]

INF = float("inf")
# Four logits of a row.
EXTREME = {
    "large and small": [1e4, -1e4, 0.0, 9999.0],
    "all large": [1e4] * 4,
    "all small": [-1e4] * 4,
    "some masked": [-INF, 2.0, -INF, 1.0],
    "one left": [-INF, -INF, -INF, 3.0],
}


def statistics_inputs(size, dtype, generator):
    """Logits as sharp as a trained model's; a third of the labels are elsewhere, on either side or far away."""
    *rows, columns, real = size
    logits = 4 * random((*rows, columns), dtype, generator)
    target = torch.randint(-real // 4 - 1, real + real // 4 + 1, tuple(rows), generator=generator)
    flat = target.view(-1)
    flat[0] = max(real - 1, 0)
    if flat.numel() > 2:
        flat[1], flat[2] = -100, 2**32 + 1
    return logits, target, real


def gradient_inputs(size, dtype, generator):
    """Global log-sums are larger than this rank's; one token does not count."""
    logits, target, real = statistics_inputs(size, dtype, generator)
    rows, exact = target.shape, exact_of(dtype)
    log_sum = reference.cross_entropy_statistics(logits.to(exact), target, real)[0].clamp(min=0) + 0.5
    gradients = [random(rows, exact, generator) for _ in range(2)]
    for gradient in gradients:
        gradient.view(-1)[-1] = 0
    return logits, target, real, log_sum, *gradients


def written_into(operation):
    def into(logits, *others):
        operation(logits, *others)
        return (logits,)

    return into


def rows_of(size):
    return torch.Size(size[:-2]).numel(), size[-2], size[-1]


CASES = [
    Case(
        "cross_entropy_statistics", cross_entropy.cross_entropy_statistics, reference.cross_entropy_statistics,
        statistics_inputs, SIZES,
        lambda size, element, exact: costs.cross_entropy_statistics(*rows_of(size), element, exact),
    ),
    Case(
        "cross_entropy_gradient_", written_into(cross_entropy.cross_entropy_gradient_),
        written_into(reference.cross_entropy_gradient_), gradient_inputs, SIZES,
        lambda size, element, exact: costs.cross_entropy_gradient_(*rows_of(size), element, exact), backward=True,
    ),
]  # fmt: skip
