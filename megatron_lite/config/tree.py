"""The configuration tree: typed, frozen, and checked as far as one can without knowing the number of processes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from megatron_lite.config.complaints import show, suggest
from megatron_lite.config.data import DataConfig
from megatron_lite.config.rope import RopeScaling
from megatron_lite.config.schedules import CHUNKS
from megatron_lite.config.section import Beta, Decay, Name, NonNegativeFloat, Positive, PositiveFloat, Section
from megatron_lite.errors import UsageError

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class ModelConfig(Section):
    """The transformer's shape, in Hugging Face's names. `head_dim: null` is hidden_size / num_attention_heads; with
    `qk_norm` each query and key head is normalized before it turns, as in Qwen3; `head: scalar` ends with one number a
    token, as reward models and critics do, in place of the vocabulary's logits.
    """

    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    head_dim: Positive
    qk_norm: bool = False
    vocab_size: Positive
    rope_theta: PositiveFloat = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: PositiveFloat = 1e-5
    tie_word_embeddings: bool = False
    head: Literal["logits", "scalar"] = "logits"

    @model_validator(mode="before")
    @classmethod
    def _default_head_dim(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or tree.get("head_dim") is not None:
            return tree
        hidden, heads = tree.get("hidden_size"), tree.get("num_attention_heads")
        if not isinstance(hidden, int) or not isinstance(heads, int) or min(hidden, heads) < 1:
            return {**tree, "head_dim": 2}  # they are complained about under their own names
        _divides("model.num_attention_heads", heads, "model.hidden_size", hidden)
        if hidden // heads % 2:
            raise UsageError(
                f"model.hidden_size / model.num_attention_heads = {hidden // heads}: must be even for rotary embeddings"
            )
        return {**tree, "head_dim": hidden // heads}

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        _divides(
            "model.num_key_value_heads", self.num_key_value_heads, "model.num_attention_heads", self.num_attention_heads
        )
        if self.head == "scalar" and self.tie_word_embeddings:
            raise UsageError("model.tie_word_embeddings = true: a scalar head has no embedding to tie; set it to false")
        if self.head_dim % 2:
            raise UsageError(f"model.head_dim = {self.head_dim}: must be even for rotary embeddings")
        return self


class ParallelConfig(Section):
    """Sizes and switches of the layout. `data: null` takes what the world leaves.

    `zero_regather: auto` becomes `step` where that fits the devices, else `microbatch`, before a run begins; what it
    became stands in run_dir/config.yaml and in checkpoints, and a resumed run keeps it.
    """

    tensor: Positive = 1
    pipeline: Positive = 1
    context: Positive = 1
    data: Positive | None = None
    sequence: bool = True
    schedule: str = "1f1b"
    virtual_stages: Positive = 1
    stage_layers: Annotated[tuple[Positive, ...], Field(strict=False)] | None = None
    context_kind: str = "ring"
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 3
    zero_regather: Literal["auto", "microbatch", "step"] = "auto"
    zero_group: Positive | None = None
    grad_reduce_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    recompute: str = "none"

    @property
    def regather(self) -> Literal["microbatch", "step"]:
        """`zero_regather` once it is decided. Raises UsageError while it is auto."""
        if self.zero_regather == "auto":
            raise UsageError(
                "parallel.zero_regather = auto: must have become microbatch or step by now, which depends on the "
                "devices' memory; the commands decide it, elsewhere set one of the two"
            )
        return self.zero_regather

    @model_validator(mode="after")
    def _check_recompute(self) -> Self:
        if not re.fullmatch(r"none|selective|full|every_[1-9]\d*", self.recompute):
            hint = suggest(self.recompute, ("none", "selective", "full", "every_2"))
            raise UsageError(
                f"parallel.recompute = {self.recompute}: must be none, selective, full or every_N (N from 1){hint}"
            )
        return self


class KernelsConfig(Section):
    """Which implementations run. `loss_chunk`: so many tokens of each rank go through the output projection and the
    loss at a time, so that full logits never exist (null: all of a microbatch's at once).
    """

    backend: str = "auto"
    attention: str = "auto"
    loss_chunk: Positive | None = None


class OptimConfig(Section):
    """AdamW and the learning rate of each step (optim/schedule.py). Inside a `Config`, `decay_steps: null` has become
    `train.steps`, and `min_lr: null` a tenth of `lr`; a schedule that is `constant` ends where its warmup does, so its
    floor is `lr` and no other is taken. `cooldown_steps` are the last of `wsd`'s decay_steps, in which alone it falls
    (null: a tenth of them).
    """

    lr: PositiveFloat
    min_lr: NonNegativeFloat
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay_steps: Positive
    cooldown_steps: Positive | None = None
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    grad_clip: PositiveFloat | None = 1.0
    backend: str = "auto"

    @model_validator(mode="before")
    @classmethod
    def _default_min_lr(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or tree.get("min_lr") is not None:
            return tree
        # A tenth of the peak, as in the reference run. A peak that is no good is complained about under its own name.
        lr, parts = tree.get("lr"), 1 if tree.get("schedule") == "constant" else 10
        return tree | {"min_lr": lr / parts if isinstance(lr, float | int) and lr > 0 else 0.0}

    @model_validator(mode="after")
    def _check_min_lr(self) -> Self:
        if self.min_lr > self.lr:
            raise UsageError(f"optim.min_lr = {self.min_lr}: must not exceed optim.lr = {self.lr}")
        if self.schedule == "constant" and self.min_lr != self.lr:
            raise UsageError(
                f"optim.min_lr = {self.min_lr}: must be null or optim.lr = {self.lr} where optim.schedule = constant"
            )
        return self

    @model_validator(mode="after")
    def _check_cooldown(self) -> Self:
        given = self.cooldown_steps
        if self.schedule != "wsd":
            if given is not None:
                raise UsageError(f"optim.cooldown_steps = {given}: optim.schedule = {self.schedule} has none; wsd has")
            return self
        if self.warmup_steps + self.cooldown > self.decay_steps:
            raise UsageError(
                f"optim.cooldown_steps = {show(given)}: {self.cooldown} steps must fit between optim.warmup_steps = "
                f"{self.warmup_steps} and optim.decay_steps = {self.decay_steps}"
            )
        return self

    @property
    def cooldown(self) -> int:
        """Steps in which `wsd` falls."""
        return self.cooldown_steps or max(1, round(self.decay_steps / 10))


class BatchRamp(Section):
    """The global batch grows from `start` sequences by `increment`, evenly over the first `samples` of the run."""

    start: Positive
    increment: Positive
    samples: Positive


class ProfileConfig(Section):
    """A trace of `steps` steps from step `start` on, counted from 1 as in metrics.jsonl, of these `ranks` (null: rank
    0), in run_dir/profile.
    """

    start: Positive
    steps: Positive = 1
    ranks: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)] | None = None

    @property
    def last(self) -> int:
        return self.start + self.steps - 1


class LoraConfig(Section):
    """Low-rank adapters: to each of `targets` in every block is added alpha / rank * B A x, of which A and B alone are
    trained (Hu et al. 2021, arXiv 2106.09685, section 4.1). `dropout` is that of x before A, in training.
    """

    rank: Positive = 16
    alpha: PositiveFloat = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[Target, ...], Field(strict=False, min_length=1)] = ("q_proj", "v_proj")

    @model_validator(mode="after")
    def _check_targets(self) -> Self:
        if twice := next((one for one in self.targets if self.targets.count(one) > 1), None):
            raise UsageError(f"lora.targets: {twice} stands twice; name each once")
        return self

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class EvaluateConfig(Section):
    """Benchmarks in a run, after each `every` steps and after the last: `tasks` by lm-evaluation-harness's names, of
    each at most `limit` documents (null: all); `include_path` is a folder with more task files (null: none).
    """

    every: Positive
    tasks: Annotated[tuple[Name, ...], Field(strict=False, min_length=1)]
    limit: Positive | None = None
    include_path: str | None = None

    @model_validator(mode="after")
    def _check_tasks(self) -> Self:
        if twice := next((one for one in self.tasks if self.tasks.count(one) > 1), None):
            raise UsageError(f"train.evaluate.tasks: {twice} stands twice; name each once")
        return self

    def is_due(self, step: int, last: int) -> bool:
        """After a step, counted from 1, of a run that ends with `last`."""
        return step == last or step % self.every == 0


class SamplesConfig(Section):
    """Texts in a run, after each `every` steps and after the last: what the model in training writes after each of
    `prompts`, up to `max_new_tokens` of it, the likeliest token each time with `temperature` 0. After pretraining a
    prompt is what a user says, in the chat template.
    """

    every: Positive
    prompts: Annotated[tuple[Name, ...], Field(strict=False, min_length=1)]
    max_new_tokens: Positive = 64
    temperature: NonNegativeFloat = 0.0

    def is_due(self, step: int, last: int) -> bool:
        """After a step, counted from 1, of a run that ends with `last`."""
        return step == last or step % self.every == 0


class TrainConfig(Section):
    """The run. `device: auto` takes an accelerator where the node has one for each of its ranks. `timeout` is in
    seconds, for every message between ranks; `peak_flops` per device and second (null: from the table of devices).

    `valid_batches` bounds a validation to that many global batches (null: the whole set); the last step's validation
    always reads the whole set. `trainable` are patterns of parameters' names, such as "*.mlp.*": all others are frozen
    (null: nothing is); with `lora` they are trained beside the adapters (null: these alone, and a scalar head).
    `neftune_alpha` is the size of the noise that embeddings get in training (null: none). `ema` is the decay of a
    moving average of the trained weights, kept beside them and saved with them, which tools/convert_checkpoint.py --ema
    takes (null: there is none). `evaluate` runs benchmarks meanwhile, and `samples` has the model write texts (null:
    none). `check_transcripts` compares every rank's communication, call by call, for finding a hang.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    steps: Positive
    global_batch_size: Positive
    batch_ramp: BatchRamp | None = None
    micro_batch_size: Positive = 1
    sequence_length: Positive
    dtype: Literal["bfloat16", "float32", "float64"] = "bfloat16"
    seed: Annotated[int, Field(ge=0)] = 1234
    initializer_range: PositiveFloat = 0.02
    trainable: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    ema: Decay | None = None
    z_loss: NonNegativeFloat = 0.0
    neftune_alpha: PositiveFloat | None = None
    valid_every: Positive | None = 1000
    valid_batches: Positive | None = None
    evaluate: EvaluateConfig | None = None
    samples: SamplesConfig | None = None
    timeout: PositiveFloat = 600.0
    check_transcripts: bool = False
    profile: ProfileConfig | None = None
    run_dir: str
    peak_flops: PositiveFloat | None = None

    @model_validator(mode="after")
    def _check_profile(self) -> Self:
        profile = self.profile
        if profile is not None and profile.last > self.steps:
            late = profile.start > self.steps
            key, why = ("start", "") if late else ("steps", f" from step {profile.start} on")
            raise UsageError(
                f"train.profile.{key} = {getattr(profile, key)}: must not go past train.steps = {self.steps}{why}"
            )
        return self


class CheckpointConfig(Section):
    """`every` steps (null: only at the end), `keep` the newest; `resume`: auto, none, or a checkpoint's path.

    `init` is a checkpoint, a run directory (its newest), a Hugging Face or PEFT directory or a GGUF file, whose weights
    alone a run begins with at step 0, once: it goes on from its own checkpoints where it has any (null: weights begin
    as `train.seed` says). With `lora` it is what these stand on, and is looked for here again where it was moved.
    """

    every: Positive | None = 1000
    keep: Positive | None = 3
    resume: str = "auto"
    init: str | None = None


class Config(Section):
    """The whole tree; its keys are the YAML file's."""

    model: ModelConfig
    parallel: ParallelConfig = ParallelConfig()
    kernels: KernelsConfig = KernelsConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    lora: LoraConfig | None = None

    @property
    def cache_dir(self) -> Path:
        """`data.cache_dir`, or the run's own."""
        return Path(self.data.cache_dir or Path(self.train.run_dir) / "cache")

    @property
    def draws(self) -> bool:
        """Whether training draws random numbers: adapters' dropout, or noise of embeddings."""
        return self.train.neftune_alpha is not None or (self.lora is not None and self.lora.dropout > 0)

    @model_validator(mode="before")
    @classmethod
    def _default_decay_steps(cls, tree: Any) -> Any:
        optim, train = (tree.get("optim"), tree.get("train")) if isinstance(tree, dict) else (None, None)
        if not isinstance(optim, dict) or not isinstance(train, dict) or optim.get("decay_steps") is not None:
            return tree
        given = {key: value for key, value in optim.items() if key != "decay_steps"}
        # Steps that are not a number are complained about under their own name.
        derived = {"decay_steps": train["steps"]} if type(train.get("steps")) is int else {}
        return tree | {"optim": given | derived}

    @model_validator(mode="after")
    def _check_evaluate(self) -> Self:
        if self.train.evaluate is not None and self.model.head != "logits":
            raise UsageError(
                f"train.evaluate: must be null with model.head = {self.model.head}, which predicts no text"
            )
        if self.train.evaluate is not None and self.data.tokenizer is None:
            raise UsageError("data.tokenizer = null: must be the run's tokenizer, since train.evaluate asks in text")
        return self

    @model_validator(mode="after")
    def _check_samples(self) -> Self:
        if self.train.samples is not None and self.model.head != "logits":
            raise UsageError(f"train.samples: must be null with model.head = {self.model.head}, which writes no text")
        if self.train.samples is not None and isinstance(self.data, DataConfig) and self.data.tokenizer is None:
            raise UsageError("data.tokenizer = null: must be the run's tokenizer, since train.samples asks in text")
        return self

    @model_validator(mode="after")
    def _refuse_what_is_not_built(self) -> Self:
        for key, accepted in ACCEPTED_TODAY.items():
            section, name = key.split(".")
            value = getattr(getattr(self, section), name)
            if value not in accepted:
                shown = " or ".join(map(show, accepted))
                raise UsageError(
                    f"{key} = {show(value)}: not available; accepted today: {shown}{suggest(value, accepted)}"
                )
        return self


# What the program can do of what the keys promise. A value joins its row with the code that makes it true.
ACCEPTED_TODAY: Mapping[str, tuple[Any, ...]] = {
    "parallel.schedule": tuple(CHUNKS),
    "parallel.context_kind": ("ring", "ulysses"),
    "kernels.backend": ("auto", "torch", "triton"),
    "kernels.attention": ("auto", "flash_attn", "triton", "sdpa"),
    "data.order": ("stable", "megatron"),
    "optim.backend": ("auto", "torch", "triton", "apex"),
}


def _divides(part_name: str, part: int, whole_name: str, whole: int) -> None:
    if whole % part:
        raise UsageError(f"{part_name} = {part}: must divide {whole_name} = {whole}")
