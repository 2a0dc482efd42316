"""What follows pretraining: the same tree with dialogues or preferences for data, and one section an algorithm."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from megatron_lite.config.data import check_sets
from megatron_lite.config.section import Name, NonNegativeFloat, Positive, PositiveFloat, Section
from megatron_lite.config.tree import Config
from megatron_lite.errors import UsageError

Algorithm = Literal["sft", "reward", "dpo"]
ALGORITHMS: tuple[Algorithm, ...] = ("sft", "reward", "dpo")
UNCOUNTED = 2**31 - 1  # train.steps of a run of data.epochs, until its rows are counted


class RowsEntry(Section):
    """One file of rows, JSONL (also .gz, .zst) or Parquet, taken in proportion to `weight`. `name` stands for it in
    metrics (null: the file's, without its endings).
    """

    path: Name
    weight: NonNegativeFloat = 1.0
    name: Name | None = None


class RowsConfig(Section):
    """Rows in place of a token stream: dialogues, or pairs of answers.

    `tokenizer` and `chat_template` (a file) are those of checkpoint.init where they are null; `system_prompt` begins a
    dialogue that has none of its own. With `packing` several samples share a row of train.sequence_length, each with
    its own positions, and none sees another; without, each has a row, as long as its microbatch needs. A sample longer
    than a row is dropped, or with `overlong: cut` loses its end. A bad row stops the run before it begins, or with
    `bad_rows: skip` is left out; both are counted.

    train.global_batch_size counts rows, packed or not. `epochs` says how often each set is seen at least, in place of
    train.steps: by their weights some come round before others, and the last step is filled up with the rows that
    follow. Rows are rendered and tokenized once, by `workers` processes (null: one a processor), into `cache_dir`
    (null: run_dir/cache).
    """

    train: Annotated[tuple[RowsEntry, ...], Field(strict=False)] = ()
    valid: Annotated[tuple[RowsEntry, ...], Field(strict=False)] = ()
    tokenizer: str | None = None
    chat_template: str | None = None
    system_prompt: str | None = None
    packing: bool = True
    overlong: Literal["drop", "cut"] = "drop"
    bad_rows: Literal["stop", "skip"] = "stop"
    epochs: PositiveFloat | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 1234
    workers: Positive | None = None
    cache_dir: str | None = None

    # What a token stream is asked about: attention stays within a sample, and the rows say what counts.
    document_mask: ClassVar[bool] = True
    reset_positions: ClassVar[bool] = True
    eod_mask_loss: ClassVar[bool] = False
    order: ClassVar[str] = "stable"

    @model_validator(mode="after")
    def _check_entries(self) -> Self:
        for key, entries in (("train", self.train), ("valid", self.valid)):
            check_sets(f"data.{key}", [(entry.name, entry.weight) for entry in entries])
        return self


class SftConfig(Section):
    """Supervised fine-tuning: the mean -log p of what the assistant says, its ends of turn included."""


class RewardConfig(Section):
    """A reward model of pairs (Bradley-Terry): -log sigmoid(chosen - rejected - margin) + centring * (chosen +
    rejected)^2. `margin` holds for every pair (null: each row's own `margin`, 0 where it has none). Of rows with a
    `criterion` those of this one are taken (null: all). A head that is not loaded begins with deviation
    1 / (hidden_size + 1), as OpenRLHF's.
    """

    margin: NonNegativeFloat | None = None
    centring: NonNegativeFloat = 0.0
    criterion: Name | None = None


class DpoConfig(Section):
    """Direct preference optimization: `reference` is the checkpoint that the policy is held against (null:
    checkpoint.init, or the weights that the run begins with). `nll_weight` times the mean -log p of chosen answers
    joins the loss; `length_normalized` compares means a token in place of sums, as TRL's ipo does and OpenRLHF's not.
    """

    beta: PositiveFloat = 0.1
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    nll_weight: NonNegativeFloat = 0.0
    length_normalized: bool = False
    reference: str | None = None


class AlignedConfig(Config):
    """The whole tree of a run after pretraining; one of the algorithms' sections is there."""

    data: RowsConfig = RowsConfig()  # type: ignore[assignment]  # it answers what a token stream is asked about
    sft: SftConfig | None = None
    reward: RewardConfig | None = None
    dpo: DpoConfig | None = None

    @property
    def algorithm(self) -> Algorithm:
        return next(name for name in ALGORITHMS if getattr(self, name) is not None)

    @property
    def compares(self) -> bool:
        """Whether rows are pairs of answers, of which one is preferred."""
        return self.algorithm != "sft"

    @model_validator(mode="before")
    @classmethod
    def _default_steps(cls, tree: Any) -> Any:
        data, train = (tree.get("data"), tree.get("train")) if isinstance(tree, dict) else (None, None)
        if not isinstance(data, dict) or not isinstance(train, dict) or data.get("epochs") is None:
            return tree
        return tree if train.get("steps") is not None else tree | {"train": train | {"steps": UNCOUNTED}}

    @model_validator(mode="before")
    @classmethod
    def _default_head(cls, tree: Any) -> Any:
        """A reward model ends with a score, whatever its policy ended with."""
        model = tree.get("model") if isinstance(tree, dict) and tree.get("reward") is not None else None
        scalar = {"head": "scalar", "tie_word_embeddings": False}
        return tree | {"model": model | scalar} if isinstance(model, dict) else tree

    @model_validator(mode="after")
    def _check_algorithm(self) -> Self:
        given = [name for name in ALGORITHMS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise UsageError(f"sections {found}: must be one of {', '.join(ALGORITHMS)}, what the run does")
        if self.train.z_loss:
            raise UsageError(f"train.z_loss = {self.train.z_loss}: must be 0 after pretraining")
        return self
