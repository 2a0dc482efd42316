"""Sharded checkpoints: safetensors and JSON, saved by any layout, loaded on any, never lost to a crash.

save(directory, trainer, step, samples)        write directory/step_N: one model, and others and tensors beside it
find(directory, choice, mesh)                  what `checkpoint.resume` chooses, verified
open_checkpoint(path, mesh)                    what a path means, verified
config_to_resume(directory, choice)            that one's configuration, before there is a mesh
load(checkpoint, trainer, base=...)            restore a training state, of one model or several
load_weights(checkpoint, model, stage, mesh)   restore the weights alone, into a model that may differ where it says so
state_tensors(checkpoint)                      an algorithm's own tensors
Base                                           what an adapter's checkpoint stands on, by path and checksum
"""

from megatron_lite.checkpoint.index import Base, RunState
from megatron_lite.checkpoint.load import (
    Checkpoint,
    config_to_resume,
    find,
    load,
    load_weights,
    open_checkpoint,
    state_tensors,
)
from megatron_lite.checkpoint.save import save

__all__ = [
    "Base",
    "Checkpoint",
    "RunState",
    "config_to_resume",
    "find",
    "load",
    "load_weights",
    "open_checkpoint",
    "save",
    "state_tensors",
]
