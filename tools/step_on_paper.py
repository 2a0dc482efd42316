"""One training step of a configuration on paper: memory and traffic of the first, a middle and the last stage's rank.

    python tools/step_on_paper.py examples/pretrain_65b/gpus_512.yaml --world-size 512
    python tools/step_on_paper.py examples/pretrain_65b/gpus_512.yaml --world-size 512 --recompute
    python tools/step_on_paper.py examples/pretrain_65b/gpus_64.yaml --world-size 64 --decode
    python tools/step_on_paper.py examples/rlhf/dpo_lora_65b.yaml --world-size 64,128,256,512

With --recompute, the first stage's memory under each choice of recomputation instead; with --phases, its traffic by
phase of the step and axis of the mesh. With --decode, what the model's generation takes on layouts of up to so many
GPUs, from closed forms alone. With several worlds, the fullest stage on each; of DPO also the reference, which is asked
once before the first step, for as many rows as a step has.
Else the first line says which kernels the step would run on a GPU, the second what `parallel.zero_regather: auto`
becomes on devices of --device-memory, which is what the step runs where auto is set.
Runs the real training step on meta tensors, so it takes seconds for any model and any world. Memory does not depend on
the number of microbatches once the pipeline is full; traffic does, and is that of a whole step.
"""

import argparse
from collections.abc import Iterator, Mapping

from megatron_lite.alignment.run import objective_of
from megatron_lite.config import AlignedConfig, Config, load_config, resolve
from megatron_lite.errors import UsageError, run_command
from megatron_lite.inference.opening import config_to_ask
from megatron_lite.model.freezing import NOTHING
from megatron_lite.model.model import schedule_of
from megatron_lite.model.objective import CrossEntropy
from megatron_lite.planning.generation_memory import GenerationMemory
from megatron_lite.planning.generation_traffic import GenerationTraffic, StepSizes
from megatron_lite.planning.memory_forms import StepMemory
from megatron_lite.planning.paper import PaperStep, choice_on_paper, forward_on_paper, packed, step_on_paper
from megatron_lite.planning.regather import ACCELERATOR, Decision, decide, needed, with_regather
from megatron_lite.planning.sizes import forward_only
from megatron_lite.planning.traffic import Traffic, step_traffic

DOCUMENTS = 8  # of a packed row; what they change is too little to see
SITES = {
    "tensor": ("attention.", "mlp.", "embedding.", "head.", "cross_entropy.", "norm_gradient."),
    "pipeline": ("pipeline.",),
    "zero": ("zero.",),
}
PHASES = {
    "count": "before the first action",
    "F": "forward",
    "B": "backward",
    "I": "backward, inputs",
    "W": "backward, weights",
    "finish": "after the last",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Memory and traffic of one training step, on paper.")
    parser.add_argument("config", metavar="CONFIG.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    parser.add_argument("--world-size", type=worlds, required=True, metavar="N[,N...]")
    parser.add_argument("--device-memory", type=float, default=80.0, metavar="GIB", help="of a GPU (default: 80)")
    parser.add_argument("--recompute", action="store_true", help="compare the choices of recomputation")
    parser.add_argument("--phases", action="store_true", help="the first stage's traffic by phase and axis")
    parser.add_argument("--decode", action="store_true", help="generation's memory and messages, on up to N GPUs")
    return parser.parse_intermixed_args()  # key=value may stand after an option


def worlds(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in text.split(","))


def roles(pipeline: int) -> dict[str, int]:
    """Stages worth a row, each once."""
    named = {"last": pipeline - 1, "middle": pipeline // 2, "first": 0}
    once = {stage: name for name, stage in named.items()}
    return {name: stage for stage, name in sorted(once.items())}


def enough(config: Config, world_size: int) -> int:
    """Microbatches that fill the pipeline: one more than its stages, or three groups where they pass in groups."""
    resolved = resolve(config, world_size)
    most = 3 * resolved.pipeline if resolved.virtual_stages > 1 else resolved.pipeline + 1
    return min(most, resolved.microbatches)


def decision(config: Config, world_size: int, gibibytes: float) -> Decision:
    """What auto becomes on devices of so much memory."""
    resolved = resolve(config, world_size)
    need = needed(config, resolved, range(resolved.pipeline), int(gibibytes * 2**30))
    return decide(need, ACCELERATOR)


def trained_on_paper(config: Config, world_size: int, rank: int, count: int | None = None) -> PaperStep:
    """Of what the configuration's run descends, on rows as it has them; `count` microbatches (None: the step's)."""
    if not isinstance(config, AlignedConfig):
        return step_on_paper(config, world_size, rank, count)
    objective = objective_of(config)
    return step_on_paper(config, world_size, rank, count, objective, packed(config, objective, DOCUMENTS))


def reference_on_paper(config: AlignedConfig, world_size: int, rank: int, count: int) -> PaperStep:
    """The log-probabilities of so many microbatches, from a model of which nothing is trained."""
    objective = CrossEntropy()
    return forward_on_paper(config, world_size, rank, objective, count, packed(config, objective, DOCUMENTS))


def sent_to_axes(traffic: Traffic) -> Mapping[str, int]:
    """Bytes by axis of the mesh."""
    return {
        axis: sum(size for (site, _), (_, size) in traffic.items() if site.startswith(prefixes))
        for axis, prefixes in SITES.items()
    }


def memory_cells(step: PaperStep) -> list[str]:
    """In GiB: state, weights, gradients, activations."""
    return [f"{step.at_peak[kind] / 2**30:.2f}" for kind in ("state", "weights", "gradients")] + [
        f"{step.activations / 2**30:.2f}"
    ]


def row(name: str, step: PaperStep, config: Config, world_size: int) -> str:
    """Memory from the paper step; traffic of the whole step from the closed forms that the tests hold it against."""
    resolved = resolve(config, world_size)
    schedule = schedule_of(config, resolved, resolved.microbatches)
    sent = sent_to_axes(step_traffic(config, resolved, schedule, step.stage))
    forms = StepMemory(config, resolved, schedule, step.stage)
    cells = [f"{forms.parameters / 1e9:.3f}", *memory_cells(step)]
    cells += [f"{size / 2**30:.2f}" for size in (forms.logits, step.peak)]
    cells += [f"{size / 1e9:,.1f}" for size in sent.values()]
    return f"| {name} ({step.stage}) | {' | '.join(cells)} |"


def table(config: Config, world_size: int) -> list[str]:
    pipeline = config.parallel.pipeline
    count = enough(config, world_size)
    lines = [
        "| stage | parameters, 1e9 | state | weights | gradients | activations | of them logits | peak, GiB "
        "| tensor, GB | pipeline, GB | zero, GB |",
        "| --- |" + " ---: |" * 10,
    ]
    for name, stage in roles(pipeline).items():
        step = trained_on_paper(config, world_size, stage * world_size // pipeline, count)
        lines.append(row(name, step, config, world_size))
    return lines


def worlds_table(config: Config, sizes: tuple[int, ...]) -> list[str]:
    """The fullest stage of a step on each world, and of the reference's pass."""
    lines = [
        "| GPUs | layout | of | microbatches | state | weights | gradients | activations | peak, GiB | tensor, GB "
        "| pipeline, GB | zero, GB |",
        "| ---: | --- | --- |" + " ---: |" * 9,
    ]
    for size in sizes:
        lines.append(world_row(config, size, "step"))
        if isinstance(config, AlignedConfig) and config.algorithm == "dpo":
            lines.append(world_row(config.model_copy(update={"lora": None}), size, "reference"))
    return lines


def world_row(config: Config, world_size: int, kind: str) -> str:
    resolved, count = resolve(config, world_size), enough(config, world_size)
    schedule = schedule_of(config, resolved, resolved.microbatches)
    ranks = [stage * world_size // resolved.pipeline for stage in roles(resolved.pipeline).values()]
    if kind == "step":
        steps = [trained_on_paper(config, world_size, rank, count) for rank in ranks]
        sent = [step_traffic(config, resolved, schedule, step.stage) for step in steps]
    else:
        assert isinstance(config, AlignedConfig)  # a reference is asked for what follows pretraining
        steps = [reference_on_paper(config, world_size, rank, count) for rank in ranks]
        asked = forward_only(schedule)
        sent = [step_traffic(config, resolved, asked, step.stage, NOTHING) for step in steps]
    step, traffic = max(zip(steps, sent, strict=True), key=lambda both: both[0].peak)
    cells = [shown_layout(config, world_size), kind, f"{resolved.microbatches}", *memory_cells(step)]
    cells += [f"{step.peak / 2**30:.2f}", *(f"{size / 1e9:,.1f}" for size in sent_to_axes(traffic).values())]
    return f"| {world_size} | {' | '.join(cells)} |"


def shown_layout(config: Config, world_size: int) -> str:
    resolved = resolve(config, world_size)
    sizes = {"tensor": resolved.tensor, "pipeline": resolved.pipeline, "data": resolved.data}
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)


def recompute_table(config: Config, world_size: int) -> list[str]:
    """What the first stage holds under each choice, in GiB; `kept` is one block's for one microbatch, in MiB."""
    lines = [
        "| recompute | a block keeps, MiB | activations | peak, GiB | less than none |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    without = None
    for policy in ("none", "selective", "every_2", "full"):
        parallel = config.parallel.model_copy(update={"recompute": policy})
        chosen = config.model_copy(update={"parallel": parallel})
        step = trained_on_paper(chosen, world_size, 0, enough(chosen, world_size))
        without = without or step.peak
        kept = f"{block_keeps(chosen, world_size) / 2**20:,.0f}"
        sizes = [step.activations, step.peak, without - step.peak]
        lines.append(f"| {policy} | {kept} | {' | '.join(f'{size / 2**30:.2f}' for size in sizes)} |")
    return lines


def phase_table(config: Config, world_size: int) -> list[str]:
    """What the first stage hands to each axis in each phase of a whole step, with its calls."""
    found = trained_on_paper(config, world_size, 0).phases
    axes = sorted({axis for _, axis in found})
    lines = [f"| phase | {' | '.join(f'{axis}, GB' for axis in axes)} |", "| --- |" + " ---: |" * len(axes)]
    for phase in PHASES:
        entries = [found.get((phase, axis)) for axis in axes]
        if not any(entries):
            continue
        cells = [f"{entry.bytes / 1e9:,.3f} in {entry.calls:,}" if entry else "" for entry in entries]
        lines.append(f"| {PHASES[phase]} | {' | '.join(cells)} |")
    return lines


def block_keeps(config: Config, world_size: int) -> float:
    """Bytes that a block keeps of a microbatch until its backward, the mean of the first stage's blocks."""
    resolved = resolve(config, world_size)
    memory = StepMemory(config, resolved, schedule_of(config, resolved, resolved.microbatches), 0)
    kept = [memory.forms.saved(unit) for chunk in memory.chunks for unit in chunk if unit.kind == "block"]
    return sum(kept) / len(kept)


def layouts_to_generate(config: Config, world_size: int) -> Iterator[tuple[int, Config]]:
    """(GPUs, configuration) of the configuration's tensor ranks, times powers of 2 of stages and of replicas."""
    tensor, layers = config.parallel.tensor, config.model.num_hidden_layers
    if world_size < tensor:
        raise UsageError(f"--world-size {world_size}: must be at least parallel.tensor = {tensor}")
    tree = config.model_dump(mode="json")
    doublings = range((world_size // tensor).bit_length())
    for gpus, stages in ((tensor << more, 1 << some) for more in doublings for some in range(more, -1, -1)):
        if stages <= layers:
            yield gpus, config_to_ask(tree, gpus, [f"parallel.tensor={tensor}", f"parallel.pipeline={stages}"])


def decode_table(config: Config, world_size: int, gibibytes: float) -> list[str]:
    """What holds and sends what in generation, on devices of so much memory."""
    room, train = int(gibibytes * 2**30 * (1 - ACCELERATOR.share)), config.train
    return [
        f"computed, not measured: sequences of {train.sequence_length:,} tokens in {train.dtype}; devices of "
        f"{gibibytes:g} GiB, less a tenth for {ACCELERATOR.reason}",
        "",
        "| GPUs | layout | weights, GiB | a sequence's cache, MiB | a row's step, MiB | sequences | of all replicas "
        "| tensor, kB | pipeline, kB | messages |",
        "| ---: | --- |" + " ---: |" * 8,
        *(decode_row(gpus, one, room) for gpus, one in layouts_to_generate(config, world_size)),
    ]


def decode_row(gpus: int, config: Config, room: int) -> str:
    """Memory of the stage that has room for the fewest sequences. For a token, the bytes of the rank that hands most to
    an axis, and all messages that it waits for, stage after stage.
    """
    resolved, length = resolve(config, gpus), config.train.sequence_length
    schedule = schedule_of(config, resolved, resolved.microbatches)
    places = [(config, resolved, schedule, stage, NOTHING) for stage in range(resolved.pipeline)]
    memory = min((GenerationMemory(*place) for place in places), key=lambda one: one.sequences(length, room))
    sequences = memory.sequences(length, room)
    sent = [GenerationTraffic(*place).step(StepSizes(tokens=1, draws=1)) for place in places]
    bytes_of = {
        name: max(sum(size for (axis, *_), (_, size) in one.items() if axis.startswith(name)) for one in sent)
        for name in ("tensor", "pipeline")
    }
    messages = sum(calls for one in sent for (*_, operation), (calls, _) in one.items() if operation != "recv")
    cells = [
        f"{memory.weights / 2**30:.2f}",
        f"{memory.cache(length) / 2**20:.1f}",
        f"{memory.row(length) / 2**20:.2f}",
    ]
    cells += [f"{sequences:,}", f"{sequences * resolved.data:,}"]
    cells += [*(f"{size / 1e3:,.1f}" for size in bytes_of.values()), f"{messages:,}"]
    return f"| {gpus} | {shown_layout(config, gpus)} | {' | '.join(cells)} |"


def main() -> None:
    options = parse_arguments()
    show = recompute_table if options.recompute else phase_table if options.phases else table
    config, first = load_config(options.config, options.overrides), options.world_size[0]
    if options.decode:
        print(*decode_table(config, first, options.device_memory), sep="\n")
        return
    would = decision(config, first, options.device_memory)
    if config.parallel.zero_regather == "auto":
        config = with_regather(config, would.chosen)
    several = len(options.world_size) > 1
    shown = worlds_table(config, options.world_size) if several else show(config, first)
    print(choice_on_paper(config), would, "", *shown, sep="\n")


if __name__ == "__main__":
    run_command(main)
