"""What a configuration file and its overrides become, and the one line that every mistake ends in."""

from pathlib import Path

import pytest

from megatron_lite.config import PRESETS, Config, config_from_tree, dump, load_config, parse_arguments
from megatron_lite.errors import UsageError

FILE = """
model: {preset: nano, num_hidden_layers: 5}
parallel: {tensor: 2, pipeline: 2}
data: {train: [{prefix: a}, {prefix: b, weight: 2}]}
optim: {lr: 3e-4}
train: {steps: 10, global_batch_size: 8, sequence_length: 32, run_dir: runs/x}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(FILE)
    return path


def parameters(config: Config) -> int:
    model = config.model
    attention = model.hidden_size * model.head_dim * (2 * model.num_attention_heads + 2 * model.num_key_value_heads)
    block = attention + 3 * model.hidden_size * model.intermediate_size + 2 * model.hidden_size
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    return model.num_hidden_layers * block + embeddings + model.hidden_size


def test_preset_fills_the_model_and_explicit_fields_override_it(path: Path) -> None:
    model = load_config(path).model
    assert (model.hidden_size, model.num_hidden_layers) == (PRESETS["nano"]["hidden_size"], 5)


def test_preset_65b_has_64_5e9_parameters(path: Path) -> None:
    config = load_config(path, ["model.preset=65b"])
    assert round(parameters(config) / 1e9, 1) == 64.5
    assert config.model.num_hidden_layers == 80  # the preset on the command line replaces the file's model


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_model(name: str, path: Path) -> None:
    assert load_config(path, [f"model.preset={name}"]).model.head_dim >= 16


def test_scientific_notation_without_a_point_is_a_number(path: Path) -> None:
    assert load_config(path).optim.lr == 3e-4
    assert load_config(path, ["optim.lr=1e-3"]).optim.lr == 1e-3
    assert load_config(path, ["optim.lr=.5E-3"]).optim.lr == 5e-4


def test_later_overrides_win_and_lists_are_yaml(path: Path) -> None:
    config = load_config(path, ["train.steps=7", "train.steps=9", "optim.betas=[0.8, 0.9]", "data.valid=[{prefix: v}]"])
    assert config.train.steps == 9
    assert config.optim.betas == (0.8, 0.9)
    assert config.data.valid[0].prefix == "v"


def test_defaults_are_the_reference_run(path: Path) -> None:
    optim = load_config(path).optim
    assert (optim.betas, optim.eps, optim.weight_decay, optim.grad_clip) == ((0.9, 0.95), 1e-8, 0.1, 1.0)


def test_null_decay_steps_are_the_steps_and_null_min_lr_a_tenth_of_lr(path: Path) -> None:
    optim = load_config(path, ["optim.decay_steps=null"]).optim
    assert (optim.decay_steps, optim.min_lr) == (10, 3e-4 / 10)
    assert load_config(path, ["optim.decay_steps=4", "optim.min_lr=0"]).optim.decay_steps == 4


def test_a_run_cut_short_may_end_within_its_warmup(path: Path) -> None:
    assert load_config(path, ["optim.warmup_steps=20", "train.steps=3"]).optim.decay_steps == 3


def test_benchmarks_in_a_run_are_due_every_few_steps_and_after_the_last(path: Path) -> None:
    overrides = ["data.tokenizer=t.model", "train.evaluate={every: 4, tasks: [piqa, arc_easy]}"]
    evaluate = load_config(path, overrides).train.evaluate
    assert evaluate is not None and (evaluate.tasks, evaluate.limit, evaluate.include_path) == (
        ("piqa", "arc_easy"), None, None,
    )  # fmt: skip
    assert [step for step in range(1, 11) if evaluate.is_due(step, 10)] == [4, 8, 10]
    assert load_config(path).train.evaluate is None


def test_a_model_that_ends_in_a_number_is_asked_for_no_text(path: Path) -> None:
    overrides = ["model.head=scalar", "model.tie_word_embeddings=false", "train.samples={every: 1, prompts: [a]}"]
    with pytest.raises(UsageError, match=r"train.samples: must be null with model.head = scalar"):
        load_config(path, overrides)


def test_the_dumped_tree_loads_as_the_same_configuration(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["parallel.stage_layers=[3,2]", "data.seed=5"])
    (tmp_path / "dumped.yaml").write_text(dump(config))
    assert load_config(tmp_path / "dumped.yaml") == config


def test_a_configuration_cannot_be_changed(path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(path).train.steps = 3


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.learing_rate=1", ["optim.learing_rate = 1", "unknown key"]),
        ("optim.warmup_step=1", ["optim.warmup_step = 1", "did you mean optim.warmup_steps?"]),
        ("train.lr=1", ["train.lr = 1", "did you mean optim.lr?"]),
        ("modle.hidden_size=3", ["modle", "did you mean model?"]),
        ("data.train=[{prefx: a}]", ["data.train[0].prefx = a", "did you mean data.train[0].prefix?"]),
        ("data.train=[{prefix: a, weight: -1}]", ["data.train[0].weight = -1", "greater than or equal to 0"]),
        ("model.preset=tny", ["model.preset = tny", "did you mean tiny?"]),
        ("model.num_attention_heads=3", ["model.num_attention_heads = 3", "model.hidden_size = 64"]),
        ("model.num_key_value_heads=3", ["model.num_key_value_heads = 3", "model.num_attention_heads = 4"]),
        ("optim.lr=-1", ["optim.lr = -1", "greater than 0"]),
        ("optim.lr=fast", ["optim.lr = fast", "number"]),
        ("optim.lr=.nan", ["optim.lr = nan", "finite"]),
        ("optim.min_lr=1", ["optim.min_lr = 1.0", "optim.lr = 0.0003"]),
        ("optim.schedule=wds", ["optim.schedule = wds", "cosine, linear, constant or wsd; did you mean wsd?"]),
        ("optim.cooldown_steps=0", ["optim.cooldown_steps = 0", "greater than or equal to 1"]),
        ("optim.cooldown_steps=3", ["optim.cooldown_steps = 3: optim.schedule = cosine has none"]),
        ("optim.betas=[0.9,1.0]", ["optim.betas[1] = 1.0", "less than 1"]),
        ("train.steps=1.5", ["train.steps = 1.5", "integer"]),
        ("train.steps=true", ["train.steps = true", "integer"]),
        ("train.dtype=fp32", ["train.dtype = fp32", "did you mean float32?"]),
        ("train={steps: 3}", ["train.global_batch_size", "missing"]),
        ("train.evaluate={tasks: [piqa]}", ["train.evaluate.every", "missing"]),
        ("train.evaluate={every: 0, tasks: [piqa]}", ["train.evaluate.every = 0", "greater than or equal to 1"]),
        ("train.evaluate={every: 1, tasks: []}", ["train.evaluate.tasks = []", "at least 1 item"]),
        ("train.evaluate={every: 1, tasks: piqa}", ["train.evaluate.tasks = piqa", "list"]),
        ("train.evaluate={every: 1, tasks: ['']}", ["train.evaluate.tasks[0] = ", "at least 1 character"]),
        ("train.evaluate={every: 1, tasks: [a, b, a]}", ["train.evaluate.tasks: a stands twice"]),
        ("train.evaluate={every: 1, tasks: [a], limit: 0}", ["train.evaluate.limit = 0", "greater than or equal to 1"]),
        ("train.evaluate={every: 1, task: [a]}", ["train.evaluate.task = [", "did you mean train.evaluate.tasks?"]),
        ("train.evaluate={every: 1, tasks: [a]}", ["data.tokenizer = null: must be the run's tokenizer"]),
        ("train.samples={every: 1, prompts: []}", ["train.samples.prompts = []", "at least 1 item"]),
        ("train.samples={every: 0, prompts: [a]}", ["train.samples.every = 0", "greater than or equal to 1"]),
        (
            "train.samples={every: 1, prompts: [a], temperature: -1}",
            ["train.samples.temperature = -1", "or equal to 0"],
        ),
        ("train.samples={every: 1, prompts: [a]}", ["data.tokenizer = null: must be the run's tokenizer"]),
        ("parallel.zero_stage=4", ["parallel.zero_stage = 4", "less than or equal to 3"]),
        ("parallel.zero_regather=steps", ["parallel.zero_regather = steps", "did you mean step?"]),
        ("parallel.recompute=every_0", ["parallel.recompute = every_0", "every_N"]),
        ("parallel.schedule=f1b1", ["parallel.schedule = f1b1", "gpipe or 1f1b", "did you mean 1f1b?"]),
        ("optim=3", ["optim = 3", "section"]),
        ("foo", ["foo", "section.key=value"]),
        ("train.steps=[", ["train.steps", "invalid YAML"]),
    ],
)
def test_a_mistake_ends_in_one_line_that_names_key_value_and_what_is_right(
    path: Path, override: str, expected: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(path, [override])
    assert "\n" not in str(caught.value)
    for part in expected:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("override", "accepted"),
    [
        ("parallel.context_kind=rings", "did you mean ring"),
        ("data.order=shuffled", "accepted today: stable or megatron"),
        ("kernels.backend=cuda", "accepted today: auto or torch or triton"),
        ("kernels.attention=flash", "accepted today: auto or flash_attn or triton or sdpa"),
        ("optim.backend=fused", "accepted today: auto or torch or triton or apex"),
    ],
)
def test_what_the_program_cannot_do_is_refused_not_ignored(path: Path, override: str, accepted: str) -> None:
    with pytest.raises(UsageError, match=override.split("=")[0]) as caught:
        load_config(path, [override])
    assert accepted in str(caught.value)


def test_a_missing_file_bad_yaml_and_a_doubled_key_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.yaml"):
        load_config(tmp_path / "missing.yaml")
    bad = tmp_path / "bad.yaml"
    for text, complaint in [
        ("model: [", "line 1"),
        ("- 1", "must be a mapping"),
        ("train:\n  steps: 1\n  steps: 2\n", "line 3.*'steps' given twice"),
    ]:
        bad.write_text(text)
        with pytest.raises(UsageError, match=complaint):
            load_config(bad)


def test_an_empty_tree_names_the_first_thing_missing() -> None:
    with pytest.raises(UsageError, match="model: missing"):
        config_from_tree({})


def test_print_config_shows_the_tree_once_in_a_job(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, shown in [("0", dump(load_config(path, ["train.steps=3"]))), ("1", "")]:
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stopped:
            parse_arguments("pretrain", [str(path), "train.steps=3", "--print-config"])
        assert stopped.value.code == 0
        assert capsys.readouterr().out == shown


def test_arguments_become_the_configuration(path: Path) -> None:
    assert parse_arguments("pretrain", [str(path), "train.steps=3"]).train.steps == 3
