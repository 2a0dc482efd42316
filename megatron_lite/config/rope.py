"""How rotary frequencies are stretched for contexts longer than a model was trained on, in Hugging Face's names."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from megatron_lite.config.complaints import show
from megatron_lite.errors import UsageError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=False)]
NEEDED = {
    "linear": (),
    "llama3": ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("original_max_position_embeddings",),
}
ALLOWED = NEEDED | {
    "yarn": (*NEEDED["yarn"], "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate"),
}


class RopeScaling(BaseModel):
    """`rope_type` linear divides all positions by `factor`; llama3 divides low frequencies and leaves high ones; yarn
    does so by how often a frequency turns in the original context, and makes attention sharper. model/rope.py has the
    formulas. Null: what the formula says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rope_type: Literal["linear", "llama3", "yarn"]
    factor: Positive
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Annotated[int, Field(gt=0)] | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    mscale: Positive | None = None
    mscale_all_dim: Positive | None = None
    attention_factor: Positive | None = None
    truncate: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        kind = self.rope_type
        for name in NEEDED[kind]:
            if getattr(self, name) is None:
                raise UsageError(f"model.rope_scaling.{name} = null: must be given with rope_type = {kind}")
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name not in ("rope_type", "factor", *ALLOWED[kind]) and value is not None:
                raise UsageError(f"model.rope_scaling.{name} = {show(value)}: means nothing with rope_type = {kind}")
        if kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:  # type: ignore[operator]
            raise UsageError(
                f"model.rope_scaling.low_freq_factor = {self.low_freq_factor}: must be below high_freq_factor = "
                f"{self.high_freq_factor}"
            )
        return self
