import pytest
from exchange.models import model_of, tree_of

from megatron_lite.config import ModelConfig
from megatron_lite.errors import DataError
from megatron_lite.exchange.architectures import config_json, model_from
from megatron_lite.exchange.source import Facts

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def read(**changes) -> ModelConfig:
    tree = {key: value for key, value in tree_of(model_of(), **changes).items() if value != "absent"}
    return model_from(tree, "config.json")[0]


def refusal(**changes) -> str:
    with pytest.raises(DataError) as caught:
        read(**changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_transformers_takes_for_an_absent_key_is_taken_here():
    model = read(rope_theta="absent", rms_norm_eps="absent", num_key_value_heads="absent", tie_word_embeddings="absent")
    assert (model.rope_theta, model.rms_norm_eps, model.num_key_value_heads) == (10000.0, 1e-6, 6)
    assert not model.tie_word_embeddings
    assert read(architectures="absent") == model_of()
    tree = tree_of(model_of())
    del tree["max_position_embeddings"]
    assert model_from(tree, "config.json")[1].context == 2048


def test_the_base_stands_in_either_place_or_in_both():
    inner = {"rope_type": "default", "rope_theta": 500.0}
    assert read(rope_theta="absent", rope_parameters=inner) == read(rope_parameters=inner) == read() == model_of()
    assert "rope_theta = 500.0 and 600.0: must be the same" in refusal(rope_parameters={**inner, "rope_theta": 600.0})


def test_scaled_angles_are_carried_in_either_place_and_written_in_both():
    scaled = read(rope_scaling=YARN)
    assert scaled == read(rope_parameters={**YARN, "rope_theta": 500.0})
    assert scaled == read(rope_scaling={**YARN, "original_max_position_embeddings": None}, max_position_embeddings=16)
    assert read(rope_scaling={"type": "linear", "factor": 2}).rope_scaling.factor == 2
    written = config_json(scaled, Facts(64), "float32")
    assert written["rope_scaling"] == YARN and written["rope_parameters"] == {**YARN, "rope_theta": 500.0}
    assert model_from(written, "config.json")[0] == scaled


def test_a_window_matters_only_within_the_context():
    mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    assert read(**mistral, sliding_window=None) == read(**mistral, sliding_window=64) == model_of()
    assert "sliding_window = 63" in refusal(**mistral, sliding_window=63)
    # Absent it is 4,096 there.
    assert "sliding_window = 4096" in refusal(**mistral, max_position_embeddings=32768)


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures = GPT2LMHeadModel: read are LlamaForCausalLM, Mistral"),
        ({"architectures": ["MixtralForCausalLM"]}, "it has experts, which the model here has not"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "it has a bias in q, k and v"),
        ({"architectures": "absent", "model_type": "gemma"}, "architectures = gemma: read are"),
        ({"model_type": "mistral"}, "model_type = mistral: is not that of LlamaForCausalLM"),
        ({"attention_bias": True}, "attention_bias = true: the model here has false built in"),
        ({"mlp_bias": True}, "mlp_bias = true"),
        ({"hidden_act": "gelu"}, "hidden_act = gelu: the model here has silu built in"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"residual_multiplier": 0.22}, "residual_multiplier = 0.22: an unknown key, which may change"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type = dynamic"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0]}}, "short_factor"),
        ({"rope_scaling": {"factor": 2.0}}, "factor = 2.0: means nothing with rope_type = default"),
        ({"rope_scaling": YARN, "rope_parameters": {**YARN, "factor": 2.0}}, "rope_parameters and rope_scaling say"),
        ({"hidden_size": "absent"}, "has no hidden_size"),
        ({"hidden_size": 97}, "num_attention_heads = 6: must divide model.hidden_size = 97"),
        ({"num_key_value_heads": 4}, "num_key_value_heads = 4: must divide"),
        ({"vocab_size": "61"}, "vocab_size = 61: must be a valid integer"),
        ({"max_position_embeddings": 0}, "max_position_embeddings = 0"),
    ],
)
def test_what_would_be_another_function_is_refused_by_name(changes, complaint):
    assert complaint in refusal(**changes)


def test_a_key_that_is_null_says_nothing():
    assert read(residual_multiplier=None, sliding_window=None, head_dim=None) == model_of()


def test_a_field_of_the_model_that_nothing_says_is_not_left_out_in_silence():
    class Wider(ModelConfig):
        softcap: float | None = 30.0

    with pytest.raises(DataError, match=r"model\.softcap = 30\.0: a config\.json has no key for it"):
        config_json(Wider(**model_of().model_dump()), Facts(64), "float32")
    assert "softcap" not in config_json(Wider(**model_of().model_dump(), softcap=None), Facts(64), "float32")
