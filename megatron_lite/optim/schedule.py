"""The learning rate of a step: linear warmup, then a cosine to the floor, then the floor."""

import math

from megatron_lite.config import OptimConfig


def learning_rate(step: int, optim: OptimConfig) -> float:
    """The learning rate of step `step`, counted from 1 as in metrics.jsonl.

    With w = warmup_steps and d = decay_steps: lr * step / w up to step w (which reaches the peak);
    min_lr + (lr - min_lr) * (1 + cos(pi * (step - w) / (d - w))) / 2 up to step d (which reaches min_lr;
    Loshchilov and Hutter 2017, "SGDR", equation 5, one cycle); min_lr afterwards. A warmup
    longer than the decay runs to its end.
    """
    if step <= optim.warmup_steps:
        return optim.lr * step / optim.warmup_steps
    if step >= optim.decay_steps:
        return optim.min_lr
    progress = (step - optim.warmup_steps) / (optim.decay_steps - optim.warmup_steps)
    return optim.min_lr + (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * progress)) / 2
