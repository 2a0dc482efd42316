"""Which weights are trained: those whose names match a pattern, as a shell matches file names."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from megatron_lite.config import Config
from megatron_lite.config.complaints import suggest
from megatron_lite.errors import UsageError
from megatron_lite.parallel.layout import Local

Patterns = Sequence[str]
EVERYTHING: Patterns = ("*",)
NOTHING: Patterns = ()
ADAPTERS: Patterns = ("*.lora_[AB].weight",)


def trained_by(config: Config) -> Patterns:
    """What a configuration trains: with `lora` the adapters, a scalar head's weight, and what `train.trainable` adds;
    without, what that names, or everything.
    """
    if config.lora is None:
        return config.train.trainable or EVERYTHING
    head = ("score.weight",) if config.model.head == "scalar" else ()
    return (*ADAPTERS, *head, *(config.train.trainable or ()))


def matches(name: str, patterns: Patterns) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(patterns: Patterns, names: Sequence[str]) -> None:
    """Raises UsageError for a pattern that no parameter of the model matches."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"train.trainable: {pattern} matches no parameter of the model{suggest(pattern, tuple(names))}"
            )


def divided(locals_: Iterable[Local], patterns: Patterns) -> tuple[list[Local], list[Local]]:
    """(trained, frozen). Raises UsageError where patterns would cut a packed weight in two."""
    trained: list[Local] = []
    frozen: list[Local] = []
    for local in locals_:
        names = list(dict.fromkeys(packed.logical.name for packed in local.packs))
        chosen = [name for name in names if matches(name, patterns)]
        if 0 < len(chosen) < len(names):
            rest = [name for name in names if name not in chosen]
            raise UsageError(
                f"train.trainable = {list(patterns)}: trains {' and '.join(chosen)} but not {' and '.join(rest)}, "
                f"which lie in one packed weight, {local.name}; name all of them or none"
            )
        (trained if chosen else frozen).append(local)
    return trained, frozen
