"""What HumanEval's task files name as functions, with its programs executed under confinement."""

from collections.abc import Sequence
from math import prod
from typing import Any

from megatron_lite.evaluation.code_execution import execute


def build_predictions(answers: Sequence[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Of each document, the programs that its answers make: the beginning that was the prompt, and what came after."""
    return [[doc["prompt"] + answer for answer in given] for given, doc in zip(answers, docs, strict=True)]


def build_predictions_instruct(answers: Sequence[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """As `build_predictions`, of answers that go on after their code: what stands behind ``` is left out."""
    return build_predictions([[answer.partition("```")[0] for answer in given] for given in answers], docs)


def pass_at_k(references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]) -> dict[str, float]:
    """`pass@K` for each K, averaged over the documents: a reference is the tests that stand after a program."""
    estimates: dict[int, list[float]] = {number: [] for number in k}
    for tests, programs in zip(references, predictions, strict=True):
        passed = sum(execute(f"{program}\n{tests}").passed for program in programs)
        for number in k:
            estimates[number].append(estimate_pass_at_k(len(programs), passed, number))
    return {f"pass@{number}": sum(values) / len(values) for number, values in estimates.items()}


def estimate_pass_at_k(samples: int, passed: int, k: int) -> float:
    """The unbiased estimate of the probability that one of k samples passes (Chen et al. 2021, equation 1).

    1 - C(samples - passed, k) / C(samples, k), as a product that does not overflow. Raises ValueError for k > samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples: k must be 1 to {samples}")
    if samples - passed < k:
        return 1.0
    return 1.0 - prod(1.0 - k / number for number in range(samples - passed + 1, samples + 1))
