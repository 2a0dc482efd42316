"""Rows past 2^31 elements have the bits of near ones, in other kernels than attention's (test_attention_places.py).

A program's number, and what it makes of it, has to be 64 bits wide; that it is not is planted (nightly), and found.
"""

from types import ModuleType

import pytest
import torch
from megatron_lite.kernels import adamw, cross_entropy, embedding, entropy, rms_norm, rope, swiglu
from support.kernels.far import FAR, far, room
from support.kernels.harness import fresh, random
from support.kernels.planted import planted
from torch import Tensor
from triton.runtime import interpreter

ROWS, STRIDE = 3, FAR // 2 + 64  # a stride that fits; twice that does not
F32 = torch.float32


def rows(columns: int, dtype=torch.bfloat16, seed: int = 0) -> Tensor:
    return random((ROWS, columns), dtype, fresh(seed))


def norms(place) -> list[Tensor]:
    """Not backward: it goes over its rows in a loop, whose numbers the interpreter takes for 32 bits wide."""
    x, residual, weight = place(rows(24)), place(rows(24, seed=1)), rows(24)[0]
    return [*rms_norm.rms_norm(x, weight, 1e-5), *rms_norm.add_rms_norm(x, residual, weight, 1e-5)]


def feeds(place) -> list[Tensor]:
    gate_up, dy = place(rows(16)), place(rows(8, seed=1))
    return [swiglu.swiglu(gate_up), swiglu.swiglu_backward(dy, gate_up)]


def turns(place) -> list[Tensor]:
    cos, sin = (random((ROWS, 4), F32, fresh(seed)) for seed in (1, 2))
    found = []
    for shape, dimension in (((ROWS, 1, 24), 0), ((1, ROWS, 24), 1)):
        qkv = place(random(shape, torch.bfloat16, fresh()), dimension)
        rope.rope_(qkv, cos, sin, torch.arange(ROWS, dtype=torch.int32).expand(3).view(shape[:2]), 1, 8, False)
        found.append(qkv)
    return found


def losses(place) -> list[Tensor]:
    logits, target, one = place(rows(24)), torch.tensor([3, -1, 23]), torch.ones(ROWS)
    log_sum, picked = cross_entropy.cross_entropy_statistics(logits, target, 24)
    cross_entropy.cross_entropy_gradient_(logits, target, 24, log_sum, one, one)
    return [log_sum, picked, logits]


def entropies(place) -> list[Tensor]:
    logits, target, one = place(rows(24)), torch.tensor([3, -1, 23]), torch.ones(ROWS)
    statistics = entropy.entropy_statistics(logits, target, 24)
    entropy.entropy_gradient_(logits, target, 24, statistics[0], statistics[2], one, one, one)
    return [*statistics, logits]


def embeddings(place) -> list[Tensor]:
    gradient, dy = place(rows(24, F32)), place(rows(24, seed=1))
    embedding.embedding_backward_(gradient, torch.tensor([2, 0, 2]), dy)
    return [gradient]


KERNELS = {
    "RMSNorm": norms,
    "SwiGLU": feeds,
    "rotary positions": turns,
    "loss": losses,
    "entropy": entropies,
    "embedding": embeddings,
}


def check(run) -> None:
    near, found = run(lambda x, dimension=0: x.clone()), run(lambda x, dimension=0: far(x, STRIDE, dimension))
    assert [torch.equal(*pair) for pair in zip(found, near, strict=True)] == [True] * len(near)


@pytest.mark.parametrize("name", KERNELS)
def test_rows_past_2_31_have_the_bits_of_near_ones(name):
    check(KERNELS[name])


class LastProgram:
    """A kernel of which the last program alone is run."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            with pytest.MonkeyPatch.context() as patch:
                builder, index = interpreter.InterpreterBuilder, interpreter.InterpreterBuilder.set_grid_idx
                patch.setattr(builder, "set_grid_idx", lambda self, x, y, z: index(self, grid[0] - 1, y, z))
                patch.setattr(builder, "set_grid_dim", lambda self, *_: setattr(self, "grid_dim", (grid[0], 1, 1)))
                self.kernel[(1,)](*arguments, **options)

        return launch


def check_adamw() -> None:
    """A shard of 2^31 elements and a block: what the last program does with its end."""
    end = [random((adamw.BLOCK,), F32, fresh(seed)).abs() for seed in range(4)]
    shards = [room(FAR + adamw.BLOCK, F32) for _ in range(4)]
    for shard, values in zip(shards, end, strict=True):
        shard[FAR:].copy_(values)
    rest = (None, None, 0, 1, 1e-3, (0.9, 0.95), 1e-8, 0.1)
    adamw.adamw_(*end, *rest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adamw, "update_kernel", LastProgram(adamw.update_kernel))
        adamw.adamw_(*shards, *rest)
    assert [torch.equal(shard[FAR:], values) for shard, values in zip(shards, end, strict=True)] == [True] * 4


def test_a_shard_past_2_31_is_updated_to_its_end():
    check_adamw()


FAULTS: list[tuple[str, ModuleType, str]] = [
    ("RMSNorm", rms_norm, "forward_kernel"),
    ("SwiGLU", swiglu, "tile_of"),
    ("rotary positions", rope, "turn_kernel"),
    ("loss", cross_entropy, "statistics_kernel"),
    ("loss", cross_entropy, "gradient_kernel"),
    ("entropy", entropy, "statistics_kernel"),
    ("entropy", entropy, "gradient_kernel"),
]


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "module", "kernel"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_places_in_32_bits_are_found(name, module, kernel, tmp_path):
    with planted(module, kernel, ".to(tl.int64)", "", tmp_path), pytest.raises(AssertionError):
        check(KERNELS[name])


@pytest.mark.nightly
@pytest.mark.parametrize("row", ["token * gradient_stride", "row * dy_stride"])
def test_embedding_rows_in_32_bits_are_found(row, tmp_path):
    narrow = row.replace(" *", ".to(tl.int32) *")
    with planted(embedding, "add_kernel", row, narrow, tmp_path), pytest.raises(AssertionError):
        check(embeddings)


@pytest.mark.nightly
def test_a_shard_with_places_in_32_bits_is_found(tmp_path):
    with planted(adamw, "update_kernel", ".to(tl.int64)", "", tmp_path), pytest.raises(AssertionError):
        check_adamw()
