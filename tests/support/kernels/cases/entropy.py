"""Entropy's local pieces: as the cross-entropy's, with logits of -inf among the others."""

from megatron_lite.kernels import costs, entropy
from megatron_lite.kernels.reference import entropy as reference
from support.kernels.cases.cross_entropy import rows_of, statistics_inputs, written_into
from support.kernels.harness import Case, exact_of, random

# (.., columns, real): two tiles and a tail, padding, no tail, two tiles of padding alone, nothing real.
SIZES = [(3, 4100, 4097), (3, 2, 48, 37), (1, 2048, 2048), (2, 6200, 50), (2, 40, 0)]


def masked_inputs(size, dtype, generator):
    """Every fifth logit counts for nothing, and the first row has none that does."""
    logits, target, real = statistics_inputs(size, dtype, generator)
    logits[..., 1::5] = float("-inf")
    logits.flatten(0, -2)[0] = float("-inf")
    return logits, target, real


def gradient_inputs(size, dtype, generator):
    """Global log-sums are larger than this rank's; one token does not count."""
    logits, target, real = masked_inputs(size, dtype, generator)
    exact = exact_of(dtype)
    log_sum, _, mean_logit, _ = reference.entropy_statistics(logits.to(exact), target, real)
    gradients = [random(target.shape, exact, generator) for _ in range(3)]
    for gradient in gradients:
        gradient.view(-1)[-1] = 0
    return logits, target, real, log_sum.clamp(min=0) + 0.5, mean_logit + 0.25, *gradients


CASES = [
    Case(
        "entropy_statistics", entropy.entropy_statistics, reference.entropy_statistics, masked_inputs, SIZES,
        lambda size, element, exact: costs.entropy_statistics(*rows_of(size), element, exact),
    ),
    Case(
        "entropy_gradient_", written_into(entropy.entropy_gradient_), written_into(reference.entropy_gradient_),
        gradient_inputs, SIZES, lambda size, element, exact: costs.entropy_gradient_(*rows_of(size), element, exact),
        backward=True,
    ),
]  # fmt: skip
