"""Our side of the throughput comparison: the training step on the peer's model, batch and layout.

    python tools/benchmark/ours.py
    torchrun --standalone --nproc-per-node 8 tools/benchmark/ours.py --tensor 2 --pipeline 2 --data 2 --regather step

ZeRO-3, float32, no clipping; `zero_regather: auto` becomes what the pretraining command would make of it. Sequence
parallelism is off by default, since the peer has none.
"""

import argparse
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from workload import Workload, add_arguments, measure, print_result, set_threads, workload_of

from megatron_lite.config import Config, config_from_tree, resolve
from megatron_lite.device import keep_freed_memory
from megatron_lite.launch import World
from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.model.model import Model
from megatron_lite.parallel.collectives import Recorder, default_store
from megatron_lite.parallel.words import Words
from megatron_lite.place import find_place
from megatron_lite.planning.regather import decided
from megatron_lite.training.boundaries import microbatches_of
from megatron_lite.training.step import Trainer

MODEL_FIELDS = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)


def config_of(w: Workload, regather: str, sequence: bool) -> Config:
    parallel = {axis: getattr(w, axis) for axis in ("tensor", "pipeline", "data")}
    return config_from_tree(
        {
            "model": {name: getattr(w, name) for name in MODEL_FIELDS},
            "parallel": {**parallel, "sequence": sequence, "zero_stage": 3, "zero_regather": regather},
            "optim": {"lr": 3e-4, "grad_clip": None},
            "train": {
                "steps": w.steps,
                "global_batch_size": w.batch_size * w.data,
                "micro_batch_size": w.micro_batch_size,
                "sequence_length": w.sequence_length,
                "dtype": "float32",
                "run_dir": "unused",
            },
        }
    )


def parse_options(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    add_arguments(parser)
    parser.add_argument("--regather", choices=("auto", "microbatch", "step"), default="auto")
    parser.add_argument("--sequence", action="store_true", help="sequence parallelism")
    return parser.parse_args()


def build_trainer(options: argparse.Namespace, recorder: Recorder | None = None) -> Trainer:
    """Joins the job's ranks, if there are several, and builds this one's trainer."""
    w = workload_of(options)
    keep_freed_memory(torch.device("cpu"))  # as the pretraining command does
    words, device = Words.alone(), torch.device("cpu")
    if w.world > 1:
        dist.init_process_group("gloo")
        words = Words.over(default_store(), dist.get_rank(), w.world)
    world = World(device, "device: cpu", words, timedelta(minutes=10))
    config = decided(config_of(w, options.regather, options.sequence), find_place(), world)
    mesh = build_mesh(MeshShape(w.pipeline, w.data, 1, w.tensor), device, recorder=recorder, words=words)
    return Trainer(Model(config, resolve(config, w.world), mesh, recorder=recorder))


def loss_of_step(trainer: Trainer, tokens: Tensor) -> float:
    """One update from this data rank's samples."""
    return trainer.train_step(microbatches_of(tokens, trainer.config), learning_rate=3e-4).loss.item()


def main() -> None:
    options = parse_options("Throughput of our training step.")
    w = workload_of(options)
    set_threads(w)
    trainer = build_trainer(options)
    timing = measure(w, trainer.mesh.coordinate["data"], lambda tokens: loss_of_step(trainer, tokens))
    if trainer.mesh.rank == w.world - 1:
        print_result(w, timing, trainer.config.parallel.regather)
    if w.world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
