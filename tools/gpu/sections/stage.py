"""Single ranks of the 65B model on 512 GPUs: the program that trains, its messages local copies of the right size."""

import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import torch

from gpu import ROOT
from gpu.day import Day
from gpu.findings import Findings
from gpu.machine import Machine, machine_of
from gpu.meshes import Local, with_communicators
from megatron_lite.config import Config, load_config, resolve
from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.model.model import Model, schedule_of
from megatron_lite.parallel.collectives import Event, Recorder
from megatron_lite.planning.memory_forms import peak_memory
from megatron_lite.planning.paper import META, fake_world
from megatron_lite.training.boundaries import microbatches_of
from megatron_lite.training.flops import flops_per_token
from megatron_lite.training.step import Trainer

WORLD = 512
ROLES = {"middle": 4, "last": 7, "first": 0}  # stages, by what is learnt from them
LAYOUT = ROOT / "examples/pretrain_65b/gpus_512.yaml"
TOY = ["model.preset=nano", "model.num_attention_heads=8", "model.num_key_value_heads=8", "model.num_hidden_layers=40",
       "train.sequence_length=64", "kernels.loss_chunk=4"]  # fmt: skip
TRACE_BYTES = 15 * 2**20  # more is not worth carrying away
LEARNING_RATE = 1e-5


class Timeline(Recorder):
    """Notes when each phase of a step begins: keeps no transcript. While `watching`, the device is idle then, so that a
    phase's time is its own, and the host's part of it is what passed until everything was issued.
    """

    def __init__(self, machine: Machine):
        self.machine, self.watching = machine, False
        self.phases: list[tuple[str, float, float]] = []  # name, when the last was issued, when this one began
        super().__init__()

    def record(self, event: Event) -> None:
        del event

    @property
    def phase(self) -> str:
        return self.phases[-1][0] if self.phases else ""

    @phase.setter
    def phase(self, name: str) -> None:
        if self.watching:
            issued = time.perf_counter()
            self.machine.synchronize()
            self.phases.append((name, issued, time.perf_counter()))

    def spent(self) -> dict[str, list[tuple[float, float]]]:
        """(milliseconds, of them the host's) of every action, by what it is: F, B and the chunk."""
        found = defaultdict(list)
        for (name, _, begin), (_, issued, end) in zip(self.phases, self.phases[1:], strict=False):
            if name[0] in "FBIW":
                chunk = name.partition(".")[2] or "0"
                found[f"{name[0]} of chunk {chunk}"].append((1e3 * (end - begin), 1e3 * (issued - begin)))
        return found


def run(day: Day, findings: Findings) -> None:
    parallel = load_config(LAYOUT).parallel
    # Fewer microbatches than the run has; as many as there are stages fill the pipeline.
    microbatches = parallel.pipeline * (1 if day.toy else 2)
    batch = f"train.global_batch_size={microbatches * parallel.data}"
    config = load_config(LAYOUT, [batch, *(TOY if day.toy else [])])
    machine = machine_of(day.toy)
    for role, stage in ROLES.items():
        with fake_world(stage * WORLD // config.parallel.pipeline, WORLD):
            one_stage(config, role, machine, findings, day.folder if role == "middle" else None)
        machine.give_memory_back()


def one_stage(config: Config, role: str, machine: Machine, findings: Findings, trace: Path | None) -> None:
    """Say what a rank of the role's stage takes; with `trace`, a folder, its kernels too."""
    resolved = resolve(config, WORLD)
    schedule = schedule_of(config, resolved, resolved.microbatches)
    with machine.watch_memory() as memory:
        shape = MeshShape.of(resolved)
        mesh = with_communicators(build_mesh(shape, META, schedule.placement), Local, machine.device)
        timeline = Timeline(machine)
        trainer = Trainer(Model(config, resolved, mesh, recorder=timeline))
        size = (resolved.local_batch_size, config.train.sequence_length + 1)
        samples = torch.randint(0, config.model.vocab_size, size, device=machine.device)

        def step() -> float:
            begin = time.perf_counter()
            trainer.train_step(microbatches_of(samples, config), LEARNING_RATE)
            machine.synchronize()
            return time.perf_counter() - begin

        begin = time.perf_counter()
        trainer.rehearse()
        rehearsal = time.perf_counter() - begin
        first = step()
        memory.forget_peak()
        seconds = step()
        planned = peak_memory(config, resolved, schedule, mesh.stage).total
        tokens = config.train.global_batch_size * config.train.sequence_length
        share = flops_per_token(config.model, config.train.sequence_length) * tokens / WORLD
        findings.say(
            "step", role=role, rank=mesh.rank, microbatches=resolved.microbatches, rehearsal_s=rehearsal,
            first_step_s=first, step_s=seconds,
            even_share_tflops=share / seconds / 1e12, peak_bytes=memory.peak, planned_bytes=planned,
            excess_of_plan=memory.peak / planned - 1, reserved_bytes=memory.reserved,
        )  # fmt: skip
        findings.say("choice", role=role, choice=str(trainer.model.choice))
    say_actions(config, role, timeline, step, findings)
    if trace is not None:
        traced = samples[: config.parallel.pipeline * config.train.micro_batch_size]
        say_kernels(trainer, traced, machine, findings, trace)


def say_actions(config: Config, role: str, timeline: Timeline, step, findings: Findings) -> None:
    """One more step, watched: the time of each kind of action, the host's and the device's."""
    timeline.watching = True
    step()
    timeline.watching = False
    medians = {}
    for name, times in sorted(timeline.spent().items()):
        whole, host = (median(column) for column in zip(*times, strict=True))
        findings.say(
            "action", role=role, action=name, count=len(times), ms=whole, host_ms=host, host_of_device=host / whole
        )
        medians[name] = whole
    layers = config.model.num_hidden_layers / config.parallel.pipeline
    findings.say("layer", role=role, layers=layers, ms=sum(medians.values()) / layers)


def say_kernels(trainer: Trainer, samples, machine: Machine, findings: Findings, folder: Path) -> None:
    profiler, rows = machine.profiled(
        lambda: trainer.train_step(microbatches_of(samples, trainer.config), LEARNING_RATE)
    )
    whole = sum(ms for _, ms, _ in rows)
    for name, ms, count in rows[:25]:
        findings.say("kernel", name=name[:90], ms=ms, launches=count, share=ms / whole)
    path = folder / "stage_trace.json.gz"
    profiler.export_chrome_trace(str(path))
    size = path.stat().st_size
    if size > TRACE_BYTES:
        path.unlink()
    kept = f"kept as {path.name}" if size <= TRACE_BYTES else "left out"
    findings.say("trace", bytes=size, kept=kept)
