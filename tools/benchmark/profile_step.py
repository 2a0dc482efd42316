"""Where one rank's step goes: products, attention, other operations, waiting for each axis, and the rest.

    torchrun --standalone --nproc-per-node 4 tools/benchmark/profile_step.py --tensor 2 --pipeline 2 --regather step

The training step of ours.py, one thread a rank. The last rank prints one line of JSON with every rank's seconds a step.
`processor` is what all threads of a rank computed, without waiting; everything else is on the rank's main thread.
"""

import json
import time
from collections import Counter
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from ours import build_trainer, loss_of_step, parse_options
from torch.profiler import ProfilerActivity, profile
from workload import Workload, tokens_of_step, workload_of

from megatron_lite.parallel.collectives import Event, Recorder
from megatron_lite.training.step import Trainer

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::mv", "aten::addmv_")


@dataclass
class Stopwatch(Recorder):
    """A recorder that keeps no transcript but how long the rank waited for each axis."""

    seconds: Counter[str] = field(default_factory=Counter)

    def record(self, event: Event) -> None:
        del event

    def complete(self, work, issued: tuple[Event, ...]) -> None:
        start = time.perf_counter()
        work.wait()
        self.seconds[f"waiting for {_axis(issued[0])}"] += time.perf_counter() - start


def _axis(event: Event) -> str:
    """The mesh axis of an operation; the pipeline's channels and parts of the zero axis have names of their own."""
    return "pipeline" if event.site.startswith("pipeline.") else event.axis.split(".")[0]


def kind_of(operation: str) -> str:
    """The row that an operation of the profile belongs to."""
    if operation in PRODUCTS:
        return "products"
    if "flash_attention" in operation:
        return "attention"
    return "other operations" if operation.startswith("aten::") else "issuing messages"


def profile_step(trainer: Trainer, watch: Stopwatch, w: Workload) -> dict[str, float]:
    """Seconds a step of each kind, `step` (all of it) and `processor`, means over the timed steps."""
    data_rank = trainer.mesh.coordinate["data"]
    for step in range(w.warmup):
        loss_of_step(trainer, tokens_of_step(w, data_rank, step))
    timed = w.steps - w.warmup
    batches = [tokens_of_step(w, data_rank, step) for step in range(timed)]
    if dist.is_initialized():
        dist.barrier()
    watch.seconds.clear()
    spent = Counter(step=-time.perf_counter(), processor=-time.process_time())
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for tokens in batches:
            loss_of_step(trainer, tokens)
        spent.update(step=time.perf_counter(), processor=time.process_time())
    operations = Counter(watch.seconds)
    for row in profiler.key_averages():
        if row.key.startswith(("aten::", "c10d::", "gloo:")):
            operations[kind_of(row.key)] += row.self_cpu_time_total / 1e6
    operations["Python and the rest"] = spent["step"] - sum(operations.values())
    return {kind: seconds / timed for kind, seconds in {**spent, **operations}.items()}


def main() -> None:
    options = parse_options("Where our training step's time goes.")
    w = workload_of(options)
    torch.set_num_threads(1)
    watch = Stopwatch()
    trainer = build_trainer(options, watch)
    mine = profile_step(trainer, watch, w)
    everyone = [mine] * w.world
    if w.world > 1:
        dist.all_gather_object(everyone, mine)
    if trainer.mesh.rank == w.world - 1:
        print(json.dumps(everyone))
    if w.world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
