"""Every number that follows from a configuration and a world size, computed once, and the checks between them."""

from dataclasses import dataclass
from typing import Literal, get_args

from megatron_lite.config.rounding import vocabulary_share
from megatron_lite.config.schedules import CHUNKS, passes_in_groups
from megatron_lite.config.tree import Config, ParallelConfig
from megatron_lite.config.work import block_products, head_products
from megatron_lite.errors import UsageError

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Resolved:
    """What the rest of the program reads instead of dividing for itself. Dtypes are torch's names."""

    world_size: int
    tensor: int
    pipeline: int
    virtual_stages: int  # chunks of the model on a stage
    context: int
    data: int
    zero_size: int  # ranks that see different tokens: data x context
    zero_group: int  # those of them that share one set of shards; 1 at ZeRO stage 0, where each has all
    microbatches: int  # forward passes a rank runs each step
    local_batch_size: int  # sequences a data rank takes each step: microbatches x micro_batch_size
    tokens_per_step: int  # over all ranks
    head_dim: int
    padded_vocab_size: int  # the vocabulary rounded up to a multiple of 16 x `tensor`
    stage_layers: tuple[int, ...]  # blocks of each virtual stage, in order
    recompute: tuple[Recompute, ...]  # for each block of the model: none, selective or full
    compute_dtype: str  # weights and activations
    master_dtype: str  # master weights, moments, gradient accumulation
    grad_reduce_dtype: str


def resolve(config: Config, world_size: int) -> Resolved:
    """The derived numbers of `config` on `world_size` processes. Raises UsageError for sizes that do not fit."""
    model, parallel, train = config.model, config.parallel, config.train
    _check_tensor_divides(config)
    _check_context_divides(config)
    data = _data_size(parallel, world_size)
    samples = data * train.micro_batch_size
    if train.global_batch_size % samples:
        raise UsageError(
            f"train.global_batch_size = {train.global_batch_size}: must be a multiple of {samples}, that is data size "
            f"{data} x train.micro_batch_size {train.micro_batch_size}"
        )
    _check_zero_group(parallel, data * parallel.context)
    microbatches = train.global_batch_size // samples
    _check_schedule(parallel, microbatches)
    _check_ramp(config, samples)
    _check_profiled_ranks(config, world_size)
    float64 = train.dtype == "float64"
    return Resolved(
        world_size=world_size,
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        virtual_stages=parallel.virtual_stages,
        context=parallel.context,
        data=data,
        zero_size=data * parallel.context,
        zero_group=1 if parallel.zero_stage == 0 else (parallel.zero_group or data * parallel.context),
        microbatches=microbatches,
        local_batch_size=train.global_batch_size // data,
        tokens_per_step=train.global_batch_size * train.sequence_length,
        head_dim=model.head_dim,
        padded_vocab_size=parallel.tensor * vocabulary_share(model.vocab_size, parallel.tensor),
        stage_layers=_stage_layers(config),
        recompute=_recompute(parallel.recompute, model.num_hidden_layers),
        compute_dtype=train.dtype,
        master_dtype="float64" if float64 else "float32",
        grad_reduce_dtype="float64" if float64 else parallel.grad_reduce_dtype,
    )


# An uneven split costs memory where a stage has more blocks, and the logits' work in blocks is an estimate.
LEAST_GAIN = 0.05


def split_layers(layers: int, stages: int, chunks: int, head: float) -> tuple[int, ...]:
    """Blocks of each virtual stage, in order: as even as possible, but for the logits.

    Those, on the last one, take the work of `head` blocks. It has fewer blocks where that relieves the heaviest of
    LEAST_GAIN or more of a stage's work.
    """
    even, balanced = (_share(layers, stages * chunks, counted) for counted in (0.0, head))
    gain = _heaviest(even, head) - _heaviest(balanced, head)
    return balanced if gain >= LEAST_GAIN * (layers / stages + head) else even


def _share(layers: int, count: int, head: float) -> tuple[int, ...]:
    """One block for each virtual stage, the others one by one to that with the least work.

    Of equals to the middle ones first, the later before the earlier, since 1F1B keeps fewer activations there; then to
    the first; to the last, which also computes the logits, last of all.
    """
    blocks = [1] * count
    order = [*range(count - 2, 0, -1), 0, count - 1] if count > 1 else [0]
    for _ in range(layers - count):
        blocks[min(order, key=lambda number: blocks[number] + head * (number == count - 1))] += 1
    return tuple(blocks)


def _heaviest(blocks: tuple[int, ...], head: float) -> float:
    return max(*blocks[:-1], blocks[-1] + head, 0)


def _check_tensor_divides(config: Config) -> None:
    tensor = config.parallel.tensor
    sizes = {
        "model.num_attention_heads": config.model.num_attention_heads,
        "model.num_key_value_heads": config.model.num_key_value_heads,
        "model.intermediate_size": config.model.intermediate_size,
    }
    if config.parallel.sequence:
        sizes["train.sequence_length (with parallel.sequence)"] = config.train.sequence_length
    for name, size in sizes.items():
        if size % tensor:
            raise UsageError(f"parallel.tensor = {tensor}: must divide {name} = {size}")


def _check_context_divides(config: Config) -> None:
    parallel, length = config.parallel, config.train.sequence_length
    context = parallel.context
    if context == 1:
        return
    chunks = 2 * context if parallel.context_kind == "ring" else context
    if length % chunks:
        why = " (two chunks a rank)" if parallel.context_kind == "ring" else ""
        raise UsageError(
            f"train.sequence_length = {length}: must be a multiple of {chunks} with parallel.context = {context}{why}"
        )
    if parallel.sequence and (length // context) % parallel.tensor:
        raise UsageError(
            f"train.sequence_length = {length}: must be a multiple of {context * parallel.tensor}, that is "
            f"parallel.context x parallel.tensor (with parallel.sequence)"
        )
    if parallel.context_kind == "ulysses":
        queries = config.model.num_attention_heads // parallel.tensor
        key_values = config.model.num_key_value_heads // parallel.tensor
        if queries % context or (key_values % context and context % key_values):
            raise UsageError(
                f"parallel.context = {context}: under context_kind ulysses it must divide the {queries} query heads "
                f"of a tensor rank, and divide or be a multiple of its {key_values} key-value heads"
            )


def _data_size(parallel: ParallelConfig, world_size: int) -> int:
    replica = parallel.tensor * parallel.pipeline * parallel.context
    sizes = f"tensor {parallel.tensor} x pipeline {parallel.pipeline} x context {parallel.context}"
    if parallel.data is not None and parallel.data * replica != world_size:
        raise UsageError(
            f"parallel.data = {parallel.data}: {sizes} x data {parallel.data} = {parallel.data * replica} must equal "
            f"the number of processes, {world_size}"
        )
    if world_size % replica:
        raise UsageError(f"world size = {world_size}: must be a multiple of {replica}, that is {sizes}")
    return world_size // replica


def _stage_layers(config: Config) -> tuple[int, ...]:
    parallel, model, layers = config.parallel, config.model, config.model.num_hidden_layers
    count = parallel.pipeline * parallel.virtual_stages
    named = f"parallel.pipeline = {parallel.pipeline}"
    if parallel.virtual_stages > 1:
        named += f" x parallel.virtual_stages = {parallel.virtual_stages}"
    if count > layers:
        raise UsageError(f"{named}: must not exceed model.num_hidden_layers = {layers}")
    if parallel.stage_layers is None:
        head = head_products(model) / block_products(model, config.train.sequence_length)
        return split_layers(layers, parallel.pipeline, parallel.virtual_stages, head)
    given = list(parallel.stage_layers)
    if len(given) != count:
        raise UsageError(f"parallel.stage_layers = {given}: must have one entry for each of {named} stages")
    if sum(given) != layers:
        raise UsageError(
            f"parallel.stage_layers = {given}: must sum to model.num_hidden_layers = {layers}, not {sum(given)}"
        )
    return tuple(given)


def _check_schedule(parallel: ParallelConfig, microbatches: int) -> None:
    name, chunks = parallel.schedule, parallel.virtual_stages
    accepted = CHUNKS[name]
    if chunks < accepted.least or (accepted.most is not None and chunks > accepted.most):
        raise UsageError(f"parallel.virtual_stages = {chunks}: must be {accepted} with parallel.schedule = {name}")
    if passes_in_groups(name, chunks) and microbatches % parallel.pipeline:
        raise UsageError(
            f"microbatches a step = {microbatches}: must be a multiple of parallel.pipeline = {parallel.pipeline} "
            f"with parallel.virtual_stages = {chunks}"
        )


def _check_ramp(config: Config, samples: int) -> None:
    """`samples` is what a microbatch on every data rank makes."""
    train, ramp = config.train, config.train.batch_ramp
    if ramp is None:
        return
    if ramp.start > train.global_batch_size or (train.global_batch_size - ramp.start) % ramp.increment:
        raise UsageError(
            f"train.batch_ramp.start = {ramp.start}: must reach train.global_batch_size = {train.global_batch_size} in "
            f"steps of train.batch_ramp.increment = {ramp.increment}"
        )
    parallel = config.parallel
    groups = parallel.pipeline if passes_in_groups(parallel.schedule, parallel.virtual_stages) else 1
    for name, value in (("start", ramp.start), ("increment", ramp.increment)):
        if value % (samples * groups):
            raise UsageError(
                f"train.batch_ramp.{name} = {value}: must be a multiple of {samples * groups}, as the global batch"
            )


def _check_profiled_ranks(config: Config, world_size: int) -> None:
    profile = config.train.profile
    if profile is not None and profile.ranks is not None and max(profile.ranks) >= world_size:
        raise UsageError(f"train.profile.ranks = {list(profile.ranks)}: each must be one of 0 to {world_size - 1}")


def _check_zero_group(parallel: ParallelConfig, zero_size: int) -> None:
    group = parallel.zero_group
    if group is None:
        return
    if parallel.zero_stage == 0:
        raise UsageError(f"parallel.zero_group = {group}: nothing is sharded at parallel.zero_stage = 0; leave it null")
    if zero_size % group:
        raise UsageError(f"parallel.zero_group = {group}: must divide data x context = {zero_size}")


def _recompute(policy: str, layers: int) -> tuple[Recompute, ...]:
    """`every_N` recomputes blocks 0, N, 2N, ... of the model in full."""
    for everywhere in get_args(Recompute):
        if policy == everywhere:
            return (everywhere,) * layers
    step = int(policy.removeprefix("every_"))
    return tuple("none" if layer % step else "full" for layer in range(layers))
