"""Sharded checkpoints: safetensors and JSON, saved by any layout, loaded on any, never lost to a crash.

save(directory, trainer, step, samples)        write directory/step_N
find(directory, choice, mesh)                  what `checkpoint.resume` chooses, verified
config_to_resume(directory, choice)            that one's configuration, before there is a mesh
load(checkpoint, trainer)                      restore a training state
load_weights(checkpoint, model, stage, mesh)   restore the weights alone
"""

from megatron_lite.checkpoint.index import Progress
from megatron_lite.checkpoint.load import Checkpoint, config_to_resume, find, load, load_weights, open_checkpoint
from megatron_lite.checkpoint.save import save

__all__ = ["Checkpoint", "Progress", "config_to_resume", "find", "load", "load_weights", "open_checkpoint", "save"]
