"""The tree of what follows pretraining: one algorithm, rows for data, and what does not go together."""

import pytest

from megatron_lite.alignment.arguments import config_of
from megatron_lite.config import AlignedConfig, Config, config_from_tree, dump
from megatron_lite.config.yaml_reader import parse_yaml
from megatron_lite.errors import UsageError

TREE = {
    "model": {"preset": "nano"},
    "data": {"train": [{"path": "rows.jsonl"}]},
    "optim": {"lr": 1e-3},
    "train": {"steps": 5, "global_batch_size": 4, "sequence_length": 16, "run_dir": "run"},
}


def tree(**sections):
    return {**TREE, **{name: {**TREE.get(name, {}), **section} for name, section in sections.items()}}


def test_a_tree_with_an_algorithms_section_is_one_of_what_follows_pretraining():
    config = config_from_tree(tree(dpo={"beta": 0.2}))
    assert isinstance(config, AlignedConfig)
    assert (config.algorithm, config.compares, config.dpo.beta) == ("dpo", True, 0.2)
    assert not isinstance(config_from_tree({**TREE, "data": {"train": [{"prefix": "p"}]}}), AlignedConfig)


@pytest.mark.parametrize("algorithm", ["sft", "reward", "dpo"])
def test_what_is_written_down_loads_again(algorithm):
    config = config_of(tree(lora={"rank": 4}), algorithm)
    assert config_from_tree(parse_yaml(dump(config), "dump")) == config


def test_a_commands_section_need_not_stand_in_the_file():
    assert config_of(TREE, "sft").algorithm == "sft"


def test_a_reward_model_ends_with_a_score_on_a_policys_shape():
    config = config_of(TREE, "reward")
    assert (config.model.head, config.model.tie_word_embeddings) == ("scalar", False)
    assert config_of(TREE, "sft").model.tie_word_embeddings


def test_steps_may_be_left_to_epochs():
    some = {name: value for name, value in TREE["train"].items() if name != "steps"}
    config = config_of({**TREE, "train": some, "data": {**TREE["data"], "epochs": 2}}, "sft")
    assert config.data.epochs == 2
    with pytest.raises(UsageError, match=r"^optim\.decay_steps: missing; .* \(and 1 more\)$"):
        config_of({**TREE, "train": some}, "sft")


@pytest.mark.parametrize(
    ("sections", "algorithm", "message"),
    [
        ({"sft": {}}, "dpo", "sections sft and dpo: must be one of sft, reward, dpo, what the run does"),
        ({"sft": {"beta": 1}}, "sft", "sft.beta = 1: unknown key; did you mean dpo.beta?"),
        ({"data": {"train": [{"prefix": "p"}]}}, "sft", r"data.train\[0\].prefix = p: unknown key"),
        ({"dpo": {"loss": "ipa"}}, "dpo", "dpo.loss = ipa: must be sigmoid or ipo; did you mean ipo?"),
        ({"dpo": {"label_smoothing": 0.5}}, "dpo", "dpo.label_smoothing = 0.5: must be less than 0.5"),
        ({"lora": {"targets": ["q_proj", "q_proj"]}}, "sft", "lora.targets: q_proj stands twice; name each once"),
        ({"lora": {"targets": ["qproj"]}}, "sft", r"lora.targets\[0\] = qproj: must be .* did you mean q_proj?"),
        ({"train": {"z_loss": 0.1}}, "sft", "train.z_loss = 0.1: must be 0 after pretraining"),
        (
            {"train": {"samples": {"every": 1, "prompts": ["a"]}}}, "reward",
            "train.samples: must be null with model.head = scalar, which writes no text",
        ),
        ({"data": {"train": [{"path": "a", "weight": 0}]}}, "sft", "data.train: every weight is 0; one must be above"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(sections, algorithm, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        config_of(tree(**sections), algorithm)


def test_pretraining_is_not_begun_with_another_algorithms_section(tmp_path):
    from support.runs import run_pretrain

    with pytest.raises(UsageError, match=r"^section sft: is for megatron_lite\.sft; pretraining has none$"):
        run_pretrain(tree(sft={}), 1)


def test_config_is_the_common_root():
    assert issubclass(AlignedConfig, Config)
