"""Train a small model on a layout, and put its shards together into logical tensors for comparison."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from megatron_lite.kernels.choice import Choice
from support import pairs

from megatron_lite.config import Config, LoraConfig, Resolved, config_from_tree, resolve
from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.model.initialization import fill_box
from megatron_lite.model.model import Model, schedule_of
from megatron_lite.model.objective import Objective
from megatron_lite.model.sequences import Sequences
from megatron_lite.model.splitmix import key_of
from megatron_lite.optim.schedule import learning_rate
from megatron_lite.parallel.collectives import Event, Recorder
from megatron_lite.parallel.pipeline.schedules import Schedule, split_backward
from megatron_lite.parallel.zero import Shards
from megatron_lite.training.boundaries import microbatches_of
from megatron_lite.training.step import Trainer
from megatron_lite.training.token_feed import with_draws

STEPS = 5
END_OF_DOCUMENT = 3
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Layout:
    """One case of the equality tests. `objective`: where there is none pretraining's. `split` delays weight gradients
    by that many actions; with `resets` positions begin anew with each document, whose end predicts nothing. `trainable`
    are the patterns of what is trained, if not everything is. With `lora` blocks are adapted, and B begins with numbers
    that matter; `neftune` is the noise of embeddings. With `pairs` microbatches are those of answers in pairs
    (pairs.py). With `asks` the first rank is given all outputs before the first step.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    context: int = 1
    context_kind: str = "ring"
    sequence: bool = True
    schedule: str = "1f1b"
    virtual_stages: int = 1
    zero_stage: int = 3
    zero_regather: str = "microbatch"
    zero_group: int | None = None
    recompute: str = "none"
    tied: bool = False
    documents: bool = False
    resets: bool = False
    loss_chunk: int | None = None
    objective: Objective | None = None
    pairs: bool = False
    trainable: tuple[str, ...] | None = None
    lora: LoraConfig | None = None
    neftune: float | None = None
    ema: float | None = None
    head: str = "logits"
    head_dim: int | None = None
    qk_norm: bool = False
    layers: int = 4
    stage_layers: tuple[int, ...] | None = None
    split: int | None = None
    asks: bool = False
    dtype: str = "float64"
    steps: int = STEPS

    @property
    def world(self) -> int:
        return self.tensor * self.pipeline * self.data * self.context

    def __str__(self) -> str:
        words = [
            f"t{self.tensor}p{self.pipeline}d{self.data}",
            f"zero{self.zero_stage}-{self.zero_regather}",
            self.schedule,
        ]
        words += [f"v{self.virtual_stages}"] if self.virtual_stages > 1 else []
        words += [] if self.sequence else ["no-sequence"]
        words += [f"group{self.zero_group}"] if self.zero_group else []
        words += [f"{self.context_kind}{self.context}"] if self.context > 1 else []
        words += ["documents"] if self.documents else []
        words += ["resets"] if self.resets else []
        words += ["tied"] if self.tied else []
        words += [f"chunk{self.loss_chunk}"] if self.loss_chunk else []
        words += [] if self.objective is None else [type(self.objective).__name__.lower()]
        words += ["pairs"] if self.pairs else []
        words += [] if self.trainable is None else ["trains-" + "-".join(self.trainable)]
        words += [] if self.lora is None else [f"lora{self.lora.rank}-{len(self.lora.targets)}-{self.lora.dropout}"]
        words += [] if self.neftune is None else [f"noise{self.neftune}"]
        words += [] if self.ema is None else [f"ema{self.ema}"]
        words += [f"{self.head}-head"] if self.head != "logits" else []
        words += [f"recompute-{self.recompute}"] if self.recompute != "none" else []
        words += [f"split{self.split}"] if self.split is not None else []
        words += [f"layers{self.layers}"] if self.layers != 4 else []
        words += ["stages-" + "-".join(map(str, self.stage_layers))] if self.stage_layers else []
        return "_".join([*words, self.dtype])

    def config(self, **train: Any) -> Config:
        # Nothing is a power of two by accident: 61 pieces leave padding, 12 sequences divide by 2, 3 and 4.
        return config_from_tree(
            {
                "model": {
                    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": self.layers,
                    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 61,
                    "tie_word_embeddings": self.tied, "head": self.head,
                    "head_dim": self.head_dim, "qk_norm": self.qk_norm,
                },
                "parallel": {
                    "tensor": self.tensor, "pipeline": self.pipeline, "data": self.data, "sequence": self.sequence,
                    "context": self.context, "context_kind": self.context_kind,
                    "schedule": self.schedule, "virtual_stages": self.virtual_stages,
                    "zero_stage": self.zero_stage, "zero_regather": self.zero_regather,
                    "zero_group": self.zero_group, "recompute": self.recompute, "stage_layers": self.stage_layers,
                },
                "kernels": {"loss_chunk": self.loss_chunk},
                "data": {
                    "document_mask": self.documents, "reset_positions": self.resets, "eod_mask_loss": self.resets,
                },
                "optim": {"lr": 0.01, "min_lr": 0.001, "warmup_steps": 2, "grad_clip": 0.5},
                "train": {
                    "steps": STEPS, "global_batch_size": 12, "micro_batch_size": 1, "sequence_length": 16,
                    "dtype": self.dtype, "initializer_range": 0.2, "z_loss": 0.01, "run_dir": "unused", "seed": 7,
                    "trainable": self.trainable, "ema": self.ema, "neftune_alpha": self.neftune, **train,
                },
                "lora": None if self.lora is None else self.lora.model_dump(mode="json"),
            }
        )  # fmt: skip

    def schedule_of(self, config: Config, resolved: Resolved, microbatches: int) -> Schedule:
        whole = schedule_of(config, resolved, microbatches)
        return whole if self.split is None else split_backward(whole, self.split)

    def single(self) -> "Layout":
        """The same model on one process, nothing sharded, split or recomputed."""
        return Layout(
            tied=self.tied, documents=self.documents, resets=self.resets, objective=self.objective, pairs=self.pairs,
            trainable=self.trainable, lora=self.lora, neftune=self.neftune, ema=self.ema, head=self.head,
            head_dim=self.head_dim, qk_norm=self.qk_norm, layers=self.layers, dtype=self.dtype, steps=self.steps,
            asks=self.asks,
        )  # fmt: skip


def reshaped(config: Config, **model: Any) -> Config:
    """The same with other fields of the model; what follows from them is derived anew."""
    tree = config.model_dump(mode="json")
    return config_from_tree(tree | {"model": tree["model"] | {"head_dim": None} | model})


@dataclass
class Outcome:
    """What a run is compared by. `gradients` are those of step 1, before clipping."""

    losses: list[float] = field(default_factory=list)
    z_losses: list[float] = field(default_factory=list)  # or all that another objective adds up
    norms: list[float] = field(default_factory=list)
    gradients: Tensors = field(default_factory=dict)
    weights: Tensors = field(default_factory=dict)
    transcripts: list[list[Event]] = field(default_factory=list)
    outputs: list[float] = field(default_factory=list)  # sums over step 1's microbatches, before training


Blocks = list[tuple[str, tuple[slice, ...], np.ndarray]]


def global_batch(step: int, config: Config) -> torch.Tensor:
    """Random tokens of a step, the same on every layout."""
    train = config.train
    generator = torch.Generator().manual_seed(1000 + step)
    size = (train.global_batch_size, train.sequence_length + 1)
    return torch.randint(0, config.model.vocab_size, size, generator=generator)


def build_trainer(layout: Layout, recorder: Recorder | None = None, config: Config | None = None,
                  device: str = "cpu", choice: Choice | None = None, batch: Sequences | None = None,
                  ) -> Trainer:  # fmt: skip
    config = config or layout.config()
    resolved = resolve(config, layout.world)
    shape = MeshShape.of(resolved)
    schedule = partial(layout.schedule_of, config, resolved)
    mesh = build_mesh(shape, torch.device(device), schedule(resolved.microbatches).placement, recorder)
    trainer = Trainer(Model(config, resolved, mesh, schedule, recorder, choice), layout.objective)
    if layout.lora is not None:
        stir(trainer.model)
    trainer.rehearse(pairs.microbatch(0) if layout.pairs and batch is None else batch)
    return trainer


def stir(model: Model) -> None:
    """Give each adapter's B numbers, by name and element alike on every layout: it begins at zero, where A would not
    matter.
    """
    for shards in (one for one in model.stage.shards if not one.values.is_meta):
        for _, box in shards.layout.boxes(shards.sharding.rank):
            if ".lora_B." in box.logical.name:
                drawn = replace(box, logical=replace(box.logical, deviation=0.3))
                fill_box(shards.values, drawn, 11, shards.numerics.master)
        shards.refresh()


def my_batches(trainer: Trainer, step: int) -> list[Sequences]:
    """This data rank's microbatches of a step."""
    config = trainer.config
    samples, number = global_batch(step, config), trainer.mesh.coordinate["data"]
    mine = samples.chunk(trainer.resolved.data)[number]
    batches = microbatches_of(mine, config, END_OF_DOCUMENT)
    key = key_of(config.train.seed, "draws", step)
    return with_draws(batches, key, number * len(mine)) if config.draws else batches


def batches_of(layout: Layout, trainer: Trainer, step: int) -> list[Sequences]:
    """The same, of pairs where the layout's objective wants them."""
    if not layout.pairs:
        return my_batches(trainer, step)
    return pairs.microbatches(step, trainer.mesh.coordinate["data"], trainer.resolved.data)


def owned_blocks(trainer: Trainer, which: str, stage_shards: Sequence[Shards] | None = None) -> Blocks:
    """This rank's blocks of `master` or `gradient`, each logical element on exactly one rank; of what is trained, where
    no shards are given.
    """
    blocks = []
    for shards in trainer.stage.trained if stage_shards is None else stage_shards:
        flat = getattr(shards, which)
        for local, box in shards.layout.boxes(shards.sharding.rank):
            if shards.owned_here(local, trainer.mesh.tensor):
                values = flat[box.offset : box.offset + box.size].view(box.shape)
                blocks.append((box.logical.name, box.slices, values.to(torch.float64).numpy().copy()))
    return blocks


@dataclass
class RankOutcome:
    """What one rank saw and owns."""

    losses: list[float] = field(default_factory=list)
    z_losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    outputs: list[float] = field(default_factory=list)  # on the first rank
    gradients: Blocks = field(default_factory=list)
    weights: Blocks = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def reported(self) -> tuple[list[float], ...]:
        """What must be the same on every rank."""
        return self.losses, self.z_losses, self.norms


def run_rank(layout: Layout) -> RankOutcome:
    """What one rank does; runs in a pool's process, or in the test's own for a world of one."""
    recorder = Recorder()
    trainer = build_trainer(layout, recorder)
    outcome = RankOutcome(events=recorder.events)
    if layout.asks:
        outcome.outputs = sums_of_outputs(layout, trainer)
    for step in range(1, layout.steps + 1):
        result = trainer.gradients(batches_of(layout, trainer, step))
        outcome.losses.append(result.loss.item())
        outcome.z_losses += [result.numbers[name].item() for name in trainer.objective.sums[1:]]
        outcome.norms.append(result.grad_norm.item())
        if step == 1:
            outcome.gradients = owned_blocks(trainer, "gradient")
        trainer.update(result.grad_norm, learning_rate(step, trainer.config.optim))
    outcome.weights = owned_blocks(trainer, "master")
    return outcome


def remembering(ranks) -> Callable[[Layout], Outcome]:
    """Runs each layout once and remembers what came out."""
    known: dict[Layout, Outcome] = {}

    def outcome(layout: Layout) -> Outcome:
        if layout not in known:
            known[layout] = run_layout(ranks, layout)
        return known[layout]

    return outcome


def sums_of_outputs(layout: Layout, trainer: Trainer) -> list[float]:
    """Of each output over every microbatch of step 1, on the first rank, as one named gather brings them there."""
    ranks = trainer.model.outputs_on_first(batches_of(layout, trainer, 1), trainer.objective)
    if ranks is None:
        return []
    return torch.stack([one.flatten(1).sum(1) for rank in ranks for one in rank]).flatten().tolist()


def assemble(blocks: list[Blocks]) -> Tensors:
    """Logical tensors from every rank's blocks. Raises AssertionError where blocks overlap or leave a hole."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, where, _ in (b for rank in blocks for b in rank):
        ends = tuple(w.stop for w in where)
        shapes[name] = tuple(max(a, b) for a, b in zip(shapes.get(name, ends), ends, strict=True))
    tensors = {name: np.full(shape, np.nan) for name, shape in shapes.items()}
    for name, where, values in (b for rank in blocks for b in rank):
        assert np.isnan(tensors[name][where]).all(), f"{name} {where} is owned twice"
        tensors[name][where] = values
    for name, tensor in tensors.items():
        assert not np.isnan(tensor).any(), f"{name} has a hole"
    return tensors


def run_layout(ranks, layout: Layout) -> Outcome:
    """Train `layout` on real processes and bring everything together."""
    results = [run_rank(layout)] if layout.world == 1 else ranks.run(run_rank, layout.world, layout)
    assert all(result.reported == results[0].reported for result in results), "ranks report different losses or norms"
    return combine(results)


def combine(results: list[RankOutcome]) -> Outcome:
    return Outcome(
        *results[0].reported,
        outputs=results[0].outputs,
        gradients=assemble([result.gradients for result in results]),
        weights=assemble([result.weights for result in results]),
        transcripts=[result.events for result in results],
    )


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """max|a - b| / max|b|."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def differences(outcome: Outcome, truth: Outcome) -> dict[str, float]:
    """Every compared quantity's distance."""
    found = {
        name: distance(np.array(getattr(outcome, name)), np.array(getattr(truth, name)))
        for name in ("losses", "z_losses", "norms", "outputs")
        if getattr(truth, name)
    }
    for kind in ("gradients", "weights"):
        ours, theirs = getattr(outcome, kind), getattr(truth, kind)
        assert ours.keys() == theirs.keys(), f"{kind}: {ours.keys() ^ theirs.keys()}"
        found |= {f"{kind} {name}": distance(ours[name], theirs[name]) for name in theirs}
    return found
