"""Stages of tasks over shard files, on a pool of processes or on Ray, the same bytes out from either.

stage = Stage("words", CountWords(min_length=3), [Task("00000", (file,)), ...])
with Pool(workers=2) as engine:
    rows = run_stage(stage, output_folder, engine)     # rows[i].outputs["counts"]: the files of task i
"""

from megatron_lite.curation.engine.manifest import File, Row
from megatron_lite.curation.engine.pool import Engine, Pool, WorkerLost
from megatron_lite.curation.engine.stage import Outputs, Stage, Task, Work, in_place, intact, run_stage

__all__ = [
    "Engine",
    "File",
    "Outputs",
    "Pool",
    "Row",
    "Stage",
    "Task",
    "Work",
    "WorkerLost",
    "in_place",
    "intact",
    "run_stage",
]
