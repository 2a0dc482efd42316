"""The training loop: read, step, write down, validate, save; and begin again where a checkpoint ended."""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist

from megatron_lite import checkpoint
from megatron_lite.config import AlignedConfig, Config, Resolved, samples_of_run
from megatron_lite.data.build import Datasets, build_datasets
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.device import device_name
from megatron_lite.errors import DataError, MegatronLiteError, UsageError
from megatron_lite.exchange.origin import begin, open_origin, resume
from megatron_lite.launch import World
from megatron_lite.mesh import Mesh, MeshShape, build_mesh
from megatron_lite.model.model import Model, schedule_of
from megatron_lite.optim.schedule import learning_rate
from megatron_lite.parallel.collectives import default_store
from megatron_lite.parallel.transcript import TranscriptChecker
from megatron_lite.training.between_steps import BetweenSteps, Meanwhile
from megatron_lite.training.feed import Feed
from megatron_lite.training.flops import flops_per_token, model_flops_utilization, peak_flops
from megatron_lite.training.metrics import MetricsWriter, StepMetrics, rewind
from megatron_lite.training.profile import Trace
from megatron_lite.training.report import write_report
from megatron_lite.training.run_files import write_run_files
from megatron_lite.training.samples import SAMPLES, Encode, samples_of
from megatron_lite.training.step import StepResult, Trainer
from megatron_lite.training.text_bytes import TextBytes
from megatron_lite.training.token_feed import TokenFeed, TokenValidation
from megatron_lite.training.validation import Validated, Validation

log = logging.getLogger("megatron_lite")


class StopRequest:
    """Whether this process was asked to end by a signal."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        def ask(number: int, frame: FrameType | None) -> None:
            self.asked = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def pretrain(config: Config, resolved: Resolved, world: World, meanwhile: Meanwhile | None = None) -> str:
    """Train to `train.steps` or until a signal; returns why it ended."""
    if isinstance(config, AlignedConfig):
        raise UsageError(f"section {config.algorithm}: is for megatron_lite.{config.algorithm}; pretraining has none")
    if config.model.head != "logits":
        raise UsageError(f"model.head = {config.model.head}: pretraining predicts tokens, which takes logits")
    mesh, recorder = connected(config, resolved, world)
    datasets = _datasets_of(config)
    with StopRequest().listening() as stop:
        trainer = Trainer(Model(config, resolved, mesh, recorder=recorder))
        trainer.rehearse()
        return Run(trainer, _course_of(datasets, trainer), stop, meanwhile or Meanwhile()).train()


def connected(config: Config, resolved: Resolved, world: World) -> tuple[Mesh, TranscriptChecker | None]:
    """The mesh of a run, and what looks on where `train.check_transcripts` asks for it."""
    recorder = checker_of(config, resolved) if config.train.check_transcripts else None
    placement = schedule_of(config, resolved, resolved.microbatches).placement
    mesh = build_mesh(MeshShape.of(resolved), world.device, placement, recorder, world.words, world.timeout)
    if mesh.rank == 0:
        log.info(world.why)
    return mesh, recorder


def _datasets_of(config: Config) -> Datasets:
    datasets = build_datasets(
        config.data,
        sequence_length=config.train.sequence_length,
        vocab_size=config.model.vocab_size,
        run_samples=samples_of_run(config.train),
        cache_dir=config.cache_dir,
    )
    wanted = [name for name in ("document_mask", "reset_positions", "eod_mask_loss") if getattr(config.data, name)]
    if wanted and datasets.eod_id is None:
        raise DataError(
            f"data.{wanted[0]} = true needs to know the token that ends a document: set data.tokenizer, or binarize "
            "with tools/preprocess_data.py, which writes it beside the data"
        )
    return datasets


def _course_of(datasets: Datasets, trainer: Trainer) -> "Course":
    config, resolved, mesh, end = trainer.config, trainer.resolved, trainer.mesh, datasets.eod_id
    text = TextBytes.of(datasets, config) if mesh.rank == 0 and datasets.valid else None
    validation = Validation(
        [TokenValidation(one, config, resolved, mesh, end) for one in datasets.valid],
        trainer,
        None if text is None else text.count,
    )
    megatron = {"megatron_samples": samples_of_run(config.train)} if config.data.order == "megatron" else {}
    feed = TokenFeed(datasets.train, config, resolved, mesh, end)
    return Course(feed, validation, datasets.tokenizer, lambda numbers: megatron)


def checker_of(config: Config, resolved: Resolved) -> TranscriptChecker | None:
    """None for a single process, which talks to nobody."""
    if resolved.world_size == 1:
        return None
    patience = config.train.timeout / 2
    return TranscriptChecker(default_store(), dist.get_rank(), resolved.world_size, patience)


def _nothing(numbers: Mapping[str, float]) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Course:
    """What an algorithm gives a run: what to train and to validate on, the tokenizer that checkpoints carry, and what
    they are to say beside, made of the last step's numbers by their names in metrics.jsonl. `encode` makes a prompt of
    `train.samples` what the model is given (None: a text to go on with).
    """

    feed: Feed
    validation: Validation
    tokenizer: Tokenizer | None
    notes: Callable[[Mapping[str, float]], Mapping[str, Any]] = field(default=_nothing)
    encode: Encode | None = None


class Run:
    """One training run on one rank. Rank 0 writes the files that people read."""

    def __init__(self, trainer: Trainer, course: Course, stop: StopRequest, meanwhile: Meanwhile):
        self.config, self.resolved, self.trainer, self.stop = trainer.config, trainer.resolved, trainer, stop
        self.feed, self.validation, self.course, self.meanwhile = course.feed, course.validation, course, meanwhile
        self.texts = samples_of(self.config, course.tokenizer, course.encode)
        self.mesh = trainer.mesh
        self.run_dir = Path(self.config.train.run_dir)
        self.writes = self.mesh.rank == 0
        self.done = 0  # steps
        self.samples = 0  # consumed: the feed's whole state
        self.base: checkpoint.Base | None = None  # what checkpoints of an adapter stand on
        self.named: dict[str, float] = {}  # the last step's numbers
        train = self.config.train
        self.peak = train.peak_flops or peak_flops(device_name(self.mesh.device), train.dtype)

    def train(self) -> str:
        """Every step from where the run stands to its end."""
        self._resume()
        if self.writes:
            write_run_files(self.run_dir, self.config, self.resolved)
            log.info(self._describe())
            log.info(self.trainer.model.choice)
        total = self.config.train.steps
        writer = MetricsWriter(self.run_dir, start_step=self.done, total_steps=total) if self.writes else None
        if self.writes:
            rewind(self.run_dir / SAMPLES, self.done)
        between = BetweenSteps(self.trainer.model, self.meanwhile, self.texts, writer)
        stopped = False
        with (
            writer or nullcontext(),
            Trace(self.config.train.profile, self.run_dir, self.mesh.rank, self.done) as trace,
        ):
            between.make_up(self.done)
            while self.done < total and not stopped:
                with trace.step(self.done + 1):
                    stopped = self._step(writer)
                    if not stopped:
                        between.after(self.done)  # what may take long, or fail, comes after what must not be lost
        self.feed.close()
        if self.writes:
            write_report(self.run_dir)
        return f"stopped at a signal after step {self.done}" if stopped else f"done: {total} steps"

    def _step(self, writer: MetricsWriter | None) -> bool:
        """One step with all that belongs to it; returns whether the run is to stop."""
        begin = time.perf_counter()
        step, train = self.done + 1, self.config.train
        rate = learning_rate(step, self.config.optim)
        batches = self.feed.microbatches(self.samples, step)
        data_seconds = time.perf_counter() - begin
        result = self.trainer.train_step(batches, rate, self.stop.asked)
        result.loss.item()  # the step is done
        seconds = time.perf_counter() - begin
        self._check_finite(step, result)
        self.done = step
        before, self.samples = self.samples, self.samples + self.feed.size(self.samples)
        stopped = bool(result.stop.item() > 0)
        validated = self.validation.after(step) if not stopped else None
        self.named = self._named(result, validated)
        if writer is not None:
            tokens = self.feed.tokens(self.samples) - self.feed.tokens(before)
            writer.write(self._metrics(tokens, rate, (seconds, data_seconds), result, validated))
        every = self.config.checkpoint.every
        if stopped or step == train.steps or (every and step % every == 0):
            self._save()
        return stopped

    def _named(self, result: StepResult, validated: Validated | None) -> dict[str, float]:
        """The objective's numbers but those that every run has, and validation's."""
        named = {name: number.item() for name, number in result.numbers.items() if name not in ("loss", "z_loss")}
        return named | (self.validation.named(validated) if validated else {})

    def _metrics(
        self, tokens: int, rate: float, times: tuple[float, float], result: StepResult, validated: Validated | None
    ) -> StepMetrics:
        train, (seconds, data_seconds) = self.config.train, times
        flops = flops_per_token(self.config.model, train.sequence_length, self.config.lora) * tokens / seconds
        accelerator = self.mesh.device.type != "cpu"
        return StepMetrics(
            step=self.done,
            tokens=self.feed.tokens(self.samples),
            loss=result.loss.item(),
            grad_norm=result.grad_norm.item(),
            lr=rate,
            seconds=seconds,
            data_seconds=data_seconds,
            tokens_per_second=tokens / seconds,
            mfu=model_flops_utilization(flops, self.resolved.world_size, self.peak),
            memory_bytes=int(result.memory.item()),
            memory_kind="accelerator_peak" if accelerator else "resident_set_peak",
            memory_reserved_bytes=int(result.reserved.item()) if accelerator else None,
            memory_free_bytes=int(result.free.item()) if accelerator else None,
            z_loss=result.numbers["z_loss"].item() if train.z_loss else None,
            valid_loss=self.validation.mean_loss(validated) if validated else None,
            named=self.named,
        )

    def _check_finite(self, step: int, result: StepResult) -> None:
        for name, value in (("loss", result.loss.item()), ("gradient norm", result.grad_norm.item())):
            if not math.isfinite(value):
                raise MegatronLiteError(
                    f"step {step}: the {name} is {value}; the weights are spoiled from here, "
                    f"checkpoints up to step {self.done} are good"
                )

    def _resume(self) -> None:
        found = checkpoint.find(self.run_dir / "checkpoints", self.config.checkpoint.resume, self.mesh)
        if found is not None:
            state, self.base = resume(found, self.trainer, self.config.checkpoint.init)
            self._refuse_another_order(found, state.extra)
            self.done, self.samples = state.step, state.samples
            if self.writes:
                log.info("resumed from %s", found)
        elif self.config.checkpoint.init is not None:
            self._begin_from(self.config.checkpoint.init)

    def _begin_from(self, path: str) -> None:
        """Another model's weights alone; the optimizer, the data and the count of steps begin anew."""
        found = open_origin(path, self.mesh)
        self.base = begin(found, self.trainer)
        if self.writes:
            log.info("begins with the weights of %s", found.path)

    def _refuse_another_order(self, found: checkpoint.Checkpoint, extra: Mapping[str, Any]) -> None:
        """Megatron's order is one of the whole run: in a run of another length, other samples come first."""
        before, now = extra.get("megatron_samples"), samples_of_run(self.config.train)
        if self.config.data.order == "megatron" and before not in (None, now):
            raise UsageError(
                f"data.order = megatron: {found} is of a run of {before} samples, this run takes {now}, which are "
                f"ordered anew; keep train.steps and the batch size, or train with data.order = stable"
            )

    def _save(self) -> None:
        checkpoint.save(
            self.run_dir / "checkpoints",
            self.trainer,
            self.done,
            self.samples,
            base=self.base,
            tokenizer=self.course.tokenizer,
            extra=self.course.notes(self.named),
        )

    def _describe(self) -> str:
        resolved, parallel = self.resolved, self.config.parallel
        return (
            f"tensor {resolved.tensor} x pipeline {resolved.pipeline} x data {resolved.data} "
            f"on {self.mesh.device.type}, {self.config.train.dtype}; ZeRO-{parallel.zero_stage}, regather each "
            f"{parallel.zero_regather}; schedule {parallel.schedule}, {resolved.microbatches} microbatches, "
            f"stage layers {list(resolved.stage_layers)}"
        )
