"""One typed configuration: `load_config` reads and checks it, `resolve` adds the numbers a world size decides.

Every complaint is a UsageError of one line that names the key, its value, and the nearest valid name.
"""

from megatron_lite.config.aligned import AlignedConfig, DpoConfig, RewardConfig, RowsConfig, RowsEntry, SftConfig
from megatron_lite.config.data import BlendEntry, DataConfig
from megatron_lite.config.load import config_from_tree, dump, load_config, parse_arguments
from megatron_lite.config.presets import PRESETS
from megatron_lite.config.ramp import batch_size_after, samples_of_run
from megatron_lite.config.resolve import Recompute, Resolved, resolve
from megatron_lite.config.tree import (
    BatchRamp,
    CheckpointConfig,
    Config,
    EvaluateConfig,
    KernelsConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    ProfileConfig,
    SamplesConfig,
    TrainConfig,
)

__all__ = [
    "PRESETS",
    "AlignedConfig",
    "BatchRamp",
    "BlendEntry",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DpoConfig",
    "EvaluateConfig",
    "KernelsConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "ProfileConfig",
    "Recompute",
    "Resolved",
    "RewardConfig",
    "RowsConfig",
    "RowsEntry",
    "SamplesConfig",
    "SftConfig",
    "TrainConfig",
    "batch_size_after",
    "config_from_tree",
    "dump",
    "load_config",
    "parse_arguments",
    "resolve",
    "samples_of_run",
]
