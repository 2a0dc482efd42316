"""What both sides of the throughput comparison run: one model, one batch, one way to measure.

The command line of each side is `Workload`'s fields (`--hidden-size 256 --tensor 2 ...`); each prints one line of JSON.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Workload:
    """Sizes of the model, of a step on one data rank, and of the layout."""

    num_hidden_layers: int = 8
    hidden_size: int = 256
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    intermediate_size: int = 688
    vocab_size: int = 4096
    sequence_length: int = 512
    micro_batch_size: int = 1
    accumulation: int = 8  # microbatches of a step on one data rank
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    steps: int = 12
    warmup: int = 2  # first steps, not timed

    @property
    def world(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def batch_size(self) -> int:
        """Sequences of a step on one data rank."""
        return self.micro_batch_size * self.accumulation

    @property
    def tokens(self) -> int:
        """Tokens of a step over all data ranks."""
        return self.batch_size * self.sequence_length * self.data


SHAPES = {
    "h256": {},
    "h320": {
        "num_hidden_layers": 6, "hidden_size": 320, "num_attention_heads": 10, "num_key_value_heads": 2,
        "intermediate_size": 864, "vocab_size": 8000, "sequence_length": 384,
    },
}  # fmt: skip


def options_of(sizes: Mapping[str, int]) -> list[str]:
    """Fields of Workload as options of a command line."""
    return [f"--{name.replace('_', '-')}={size}" for name, size in sizes.items()]


@dataclass(frozen=True)
class Timing:
    """Of each step after the warmup: seconds, processor seconds of all ranks together, and the mean loss."""

    seconds: list[float]
    processor: list[float]
    losses: list[float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """An option for each field of Workload."""
    for field in fields(Workload):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)


def workload_of(options: argparse.Namespace) -> Workload:
    return Workload(**{field.name: getattr(options, field.name) for field in fields(Workload)})


def set_threads(workload: Workload) -> None:
    """One process uses every core, ranks of a larger world one thread each."""
    torch.set_num_threads(len(os.sched_getaffinity(0)) if workload.world == 1 else 1)


def tokens_of_step(workload: Workload, data_rank: int, step: int) -> Tensor:
    """Random token ids [batch_size, sequence_length + 1], int64: this data rank's part of the step's global batch."""
    shape = (workload.data, workload.batch_size, workload.sequence_length + 1)
    return torch.randint(0, workload.vocab_size, shape, generator=torch.Generator().manual_seed(step))[data_rank]


def measure(workload: Workload, data_rank: int, run_step: Callable[[Tensor], float]) -> Timing:
    """Time steps of `run_step`, which takes the step's tokens and returns its mean loss.

    All ranks start a step together and its time ends when the last one is done.
    """
    seconds, processor, losses = [], [], []
    for step in range(workload.steps):
        tokens = tokens_of_step(workload, data_rank, step)
        _barrier()
        start, busy = time.perf_counter(), time.process_time()
        loss = run_step(tokens)
        _barrier()
        if step >= workload.warmup:
            seconds.append(time.perf_counter() - start)
            processor.append(time.process_time() - busy)
            losses.append(loss)
    return Timing(seconds, _sum_over_ranks(processor), losses)


def print_result(workload: Workload, timing: Timing, regather: str) -> None:
    """One line of JSON: tokens_per_second and processor_seconds are medians over the timed steps."""
    result = {
        "tokens_per_second": workload.tokens / statistics.median(timing.seconds),
        "processor_seconds": statistics.median(timing.processor),
        "regather": regather,
    }
    print(json.dumps(result | asdict(timing) | {"workload": asdict(workload)}))


def _sum_over_ranks(numbers: list[float]) -> list[float]:
    together = torch.tensor(numbers)
    if dist.is_initialized():
        dist.all_reduce(together)
    return together.tolist()


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
