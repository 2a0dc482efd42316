"""The batch size as a function of the samples consumed, so that it is the same on any layout and after any resume."""

from megatron_lite.config.tree import TrainConfig


def batch_size_after(samples: int, train: TrainConfig) -> int:
    """Sequences of the global batch that follows after `samples` consumed ones.

    With a ramp the batch grows from `start` by `increment`, in equal shares of the ramp's samples, and stays at
    global_batch_size after them (Megatron-LM's --rampup-batch-size, in integers).
    """
    ramp = train.batch_ramp
    if ramp is None or samples >= ramp.samples:
        return train.global_batch_size
    increments = (train.global_batch_size - ramp.start) // ramp.increment
    return ramp.start + samples * increments // ramp.samples * ramp.increment


def samples_of_run(train: TrainConfig) -> int:
    """Sequences that the run's steps read together."""
    samples = steps = 0
    while train.batch_ramp is not None and samples < train.batch_ramp.samples and steps < train.steps:
        samples += batch_size_after(samples, train)
        steps += 1
    return samples + (train.steps - steps) * train.global_batch_size
