"""Which findings pass. Bounds stand here and nowhere else, so that a page can be drawn again with others."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu.findings import Finding

COMPARE = {"<=": operator.le, ">=": operator.ge, "is": operator.eq}


@dataclass(frozen=True)
class Rule:
    """What the value under `key` has to be in findings of a table, of those that have the values of `where`.

    Times and memory of a toy say nothing: such rules hold on a GPU alone (`on_toys` false).
    """

    section: str
    what: str
    key: str
    compare: str
    bound: float | bool
    where: Mapping[str, Any] = field(default_factory=dict)
    on_toys: bool = True

    def concerns(self, finding: Finding, toy: bool) -> bool:
        return (
            (finding["section"], finding["what"]) == (self.section, self.what)
            and self.key in finding
            and all(finding.get(key) == value for key, value in self.where.items())
            and (self.on_toys or not toy)
        )

    def broken_by(self, finding: Finding) -> str | None:
        value = finding[self.key]
        comparable = isinstance(value, int | float)
        if comparable and COMPARE[self.compare](value, self.bound):
            return None
        words = {"<=": "at most ", ">=": "at least ", "is": ""}[self.compare]
        shown = f"{value:.4g}" if isinstance(value, float) else value
        return f"{self.key} is {shown}, must be {words}{self.bound}"


@dataclass(frozen=True)
class Verdict:
    """`word` is pass, fail, or measured where no rule concerns the finding; `reasons` say what is wrong."""

    word: str
    reasons: tuple[str, ...] = ()


def _by_dtype(section: str, what: str, key: str, bounds: Mapping[str, float]) -> list[Rule]:
    return [Rule(section, what, key, "<=", bound, {"dtype": dtype}) for dtype, bound in bounds.items()]


RULES = (
    Rule("facts", "copy", "share_of_published", ">=", 0.83, on_toys=False),
    Rule("stage", "step", "excess_of_plan", "<=", 0.02, on_toys=False),
    Rule("stage", "step", "excess_of_plan", ">=", -0.02, on_toys=False),
    Rule("stage", "action", "host_of_device", "<=", 0.25, on_toys=False),
    Rule("stage", "layer", "ms", "<=", 10.5, {"role": "middle"}, on_toys=False),
    Rule("kernels", "case", "worst_of_allowed", "<=", 1.0),
    Rule("kernels", "case", "repeats", "is", True),
    Rule("kernels", "case", "strides", "is", True),
    Rule("products", "weight gradient", "far", "<=", 1e-5),
    Rule("products", "weight gradient", "repeats", "is", True),
    *_by_dtype("training", "run", "far", {"float64": 1e-11, "float32": 2e-6, "bfloat16": 3e-2}),
    # PyTorch's own operations may add in any order on a GPU; ours may not.
    Rule("training", "run", "repeats", "is", True, {"backend": "triton"}),
    Rule("training", "less kept", "same_bits", "is", True, {"way": "selective"}),
    Rule("training", "less kept", "same_bits", "is", True, {"way": "full"}),
    Rule("training", "waits of the host", "count", "<=", 1),
    Rule("nccl", "calls", "unchanged", "is", True),
    Rule("ranks", "against one process", "far", "<=", 1e-5),
    Rule("speed", "kernel", "share", ">=", 0.85, {"by": "ours"}, on_toys=False),
    Rule("connect", "layout", "second_step_s", "<=", 25.0),  # of a small model: more, and something stands
    *_by_dtype("layouts", "against one process", "far", {"float64": 1e-10, "float32": 1e-5}),
)


def judge(finding: Finding, toy: bool, rules: tuple[Rule, ...] = RULES) -> Verdict:
    """By every rule that concerns it; what raised, died or was left out fails."""
    reasons = [finding[key] for key in ("error", "died", "skipped") if finding.get(key)]
    concerned = [rule for rule in rules if rule.concerns(finding, toy)]
    reasons += [reason for rule in concerned if (reason := rule.broken_by(finding))]
    if reasons:
        return Verdict("fail", tuple(reasons))
    return Verdict("pass" if concerned else "measured")


def is_toy(findings: list[Finding]) -> bool:
    """As the day's first line says."""
    return any(finding["section"] == "day" and finding.get("toy") for finding in findings)
