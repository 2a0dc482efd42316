"""Stretched rotary frequencies against the answers that transformers gives, kept in rope_answers.json."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from support.layouts import Layout, reshaped

from megatron_lite.config import ModelConfig
from megatron_lite.errors import UsageError
from megatron_lite.model.rope import attention_factor, tables_of

ANSWERS = Path(__file__).with_name("rope_answers.json")
MODEL = {"hidden_size": 512, "num_attention_heads": 8, "rope_theta": 500000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
CASES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn with its own borders": YARN | {"beta_fast": 24.0, "beta_slow": 2.0, "truncate": False},
    "yarn with two scales": YARN | {"mscale": 0.7, "mscale_all_dim": 1.2},
    "yarn with a factor of its own": YARN | {"attention_factor": 1.3},
}


def model_with(scaling: dict) -> ModelConfig:
    return reshaped(Layout().config(), **MODEL, rope_scaling=scaling).model


def answer_of(scaling: dict) -> dict:
    """transformers' own: (inverse frequencies, what both tables are multiplied by)."""
    transformers = pytest.importorskip("transformers", reason="installed with the peers extra alone")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    longest = int(scaling["factor"] * scaling.get("original_max_position_embeddings", 8192))
    config = transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=8, max_position_embeddings=longest,
        rope_parameters=scaling | {"rope_theta": MODEL["rope_theta"]},
    )  # fmt: skip
    frequency, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    return {"frequency": frequency.tolist(), "factor": float(factor)}


@pytest.mark.parametrize("case", CASES)
def test_angles_and_sharpness_are_those_of_transformers(case):
    model, answer = model_with(CASES[case]), json.loads(ANSWERS.read_text())[case]
    cos, sin = tables_of(model, 3, torch.float64, torch.device("cpu"))
    frequency = torch.atan2(sin[1], cos[1])
    expected = torch.tensor(answer["frequency"], dtype=torch.float64)
    assert torch.allclose(frequency, expected, rtol=1e-6, atol=0)
    assert torch.allclose(torch.hypot(cos, sin), torch.full_like(cos, answer["factor"]), rtol=1e-9)
    assert attention_factor(model.rope_scaling) == pytest.approx(answer["factor"], rel=1e-9)


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES)
def test_the_answers_that_are_kept_are_todays(case):
    assert json.loads(ANSWERS.read_text())[case] == answer_of(CASES[case])


@pytest.mark.parametrize(
    ("scaling", "line"),
    [
        ({"rope_type": "llama3", "factor": 8.0}, r"rope_scaling.low_freq_factor = null: must be given with .* llama3"),
        ({"rope_type": "linear", "factor": 2.0, "mscale": 1.0}, r"mscale = 1.0: means nothing with rope_type = linear"),
        (LLAMA3 | {"low_freq_factor": 4.0}, r"low_freq_factor = 4.0: must be below high_freq_factor = 4.0"),
        ({"rope_type": "dynamic", "factor": 2.0}, r"model.rope_scaling.rope_type = dynamic: must be .*linear"),
        ({"rope_type": "linear", "factor": 0.0}, r"model.rope_scaling.factor = 0.0: must be"),
    ],
)
def test_a_scaling_that_is_incomplete_or_unknown_is_refused_by_name(scaling, line):
    with pytest.raises((UsageError, ValidationError), match=line):
        model_with(scaling)
