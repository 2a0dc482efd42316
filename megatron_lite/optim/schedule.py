"""The learning rate of a step: linear warmup, then as `optim.schedule` says down to the floor, then the floor."""

import math

from megatron_lite.config import OptimConfig


def learning_rate(step: int, optim: OptimConfig) -> float:
    """The learning rate of step `step`, counted from 1 as in metrics.jsonl.

    With w = warmup_steps and d = decay_steps: lr * step / w up to step w, which reaches the peak; lr up to step b; from
    there, with p = (step - b) / (d - b), min_lr + (lr - min_lr) * height up to step d, which reaches the floor; min_lr
    afterwards. A warmup longer than the decay runs to its end.

    cosine    b = w, height (1 + cos(pi p)) / 2 (Loshchilov and Hutter 2017, "SGDR", equation 5, one cycle)
    linear    b = w, height 1 - p
    wsd       b = d - cooldown, height 1 - p: stable, so that a run of any length can branch off (Hu et al. 2024,
              "MiniCPM", arXiv 2404.06395, section 4.2), with a cooldown that is linear (Haegele et al. 2024, arXiv
              2405.18392, section 3)
    constant  lr from step w on, for ever
    """
    if step <= optim.warmup_steps:
        return optim.lr * step / optim.warmup_steps
    begin = optim.decay_steps - optim.cooldown if optim.schedule == "wsd" else optim.warmup_steps
    if optim.schedule == "constant" or step <= begin:
        return optim.lr
    if step >= optim.decay_steps:
        return optim.min_lr
    progress = (step - begin) / (optim.decay_steps - begin)
    height = (1 + math.cos(math.pi * progress)) / 2 if optim.schedule == "cosine" else 1 - progress
    return optim.min_lr + (optim.lr - optim.min_lr) * height
