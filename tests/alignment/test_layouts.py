"""Fine-tuning, reward models and DPO on layouts: raw gradients and the weights after three updates are those of one
process, for all of the model and for an adapter alone.
"""

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
from nccl_replay import replay
from support.layouts import Layout, Outcome, differences, run_layout

from megatron_lite.alignment.dpo import Dpo
from megatron_lite.alignment.reward import BradleyTerry
from megatron_lite.config import LoraConfig
from megatron_lite.model.objective import CrossEntropy

TOLERANCE = 1e-10
PAIRS = Layout(layers=2, steps=3, pairs=True)
ALGORITHMS = {
    "sft": replace(PAIRS, objective=CrossEntropy(0.01)),
    "reward": replace(PAIRS, objective=BradleyTerry(centring=0.1), head="scalar"),
    "dpo": replace(PAIRS, objective=Dpo(0.3, "sigmoid", label_smoothing=0.1, nll_weight=0.2, length_normalized=True)),
}
LAYOUTS = {
    "t2": {"tensor": 2},
    "p2": {"pipeline": 2},
    "p2 zb_h1": {"pipeline": 2, "schedule": "zb_h1"},
    "d2": {"data": 2},
    "d2 step": {"data": 2, "zero_regather": "step"},
    "c2": {"context": 2},
    "t2p2d2": {"tensor": 2, "pipeline": 2, "data": 2},
    "t2p2c2": {"tensor": 2, "pipeline": 2, "context": 2},
}
EIGHT = {"t2d4": {"tensor": 2, "data": 4}}  # for three microbatches
WEIGHTS = {"all": None, "lora": LoraConfig(rank=3, alpha=6.0, targets=("q_proj", "v_proj", "o_proj", "gate_proj"))}
# Each two of algorithm, layout and weights meet.
PAIRWISE = [
    (algorithm, layout, list(WEIGHTS)[(a + n) % 2])
    for (a, algorithm), (n, layout) in product(enumerate(ALGORITHMS), enumerate(LAYOUTS))
]
REST = [case for case in product(ALGORITHMS, LAYOUTS | EIGHT, WEIGHTS) if case not in PAIRWISE]


@cache
def truth(algorithm: str, weights: str) -> Outcome:
    return run_layout(None, replace(ALGORITHMS[algorithm], lora=WEIGHTS[weights]))


def check(ranks, algorithm: str, layout: str, weights: str) -> None:
    found = run_layout(ranks, replace(ALGORITHMS[algorithm], lora=WEIGHTS[weights], **(LAYOUTS | EIGHT)[layout]))
    errors = differences(found, truth(algorithm, weights))
    assert max(errors.values()) < TOLERANCE, errors
    replay(found.transcripts)


@pytest.mark.parametrize(("algorithm", "layout", "weights"), PAIRWISE)
def test_a_layouts_gradients_and_weights_are_those_of_one_process(ranks, algorithm, layout, weights):
    check(ranks, algorithm, layout, weights)


@pytest.mark.nightly
@pytest.mark.parametrize(("algorithm", "layout", "weights"), REST)
def test_every_other_layouts_gradients_and_weights_are_those_of_one_process(ranks, algorithm, layout, weights):
    check(ranks, algorithm, layout, weights)
