"""The sum of squares of many shards beyond what every operation is held to: its digits, its table, one launch."""

import math

import pytest
import torch
from megatron_lite.kernels.reference import square_norm as reference
from megatron_lite.kernels.square_norm import BLOCK, square_norm, sum_kernel, table_of
from support.kernels.cases.square_norm import LENGTHS, inputs
from support.kernels.harness import fresh, random

EACH = pytest.mark.parametrize("lengths", LENGTHS, ids=str)


def shards_of(lengths, dtype=torch.float32):
    return list(inputs(lengths, dtype, fresh()))


def exact_sum(shards) -> float:
    return math.fsum(float(value) ** 2 for shard in shards for value in shard.double())


def norm_of(shards):
    return square_norm(shards, table_of(shards))


@EACH
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-7), (torch.float64, 1e-14)], ids=str)
def test_it_is_the_sum_of_all_squares_in_float64(lengths, dtype, tolerance):
    shards = shards_of(lengths, dtype)
    total = norm_of(shards)
    assert total.dtype == torch.float64 and total.shape == ()
    assert float(total) == pytest.approx(exact_sum(shards), rel=tolerance)
    assert float(reference.square_norm(shards)) == pytest.approx(exact_sum(shards), rel=tolerance)


@pytest.mark.parametrize("value", [None, 1e-3], ids=["normal", "equal"])
def test_torchs_sum_loses_no_digits_of_a_long_shard(value):
    """Float32 sums of millions of squares one after the other are off by parts in a thousand."""
    shard = random((2**22 + 5,), torch.float32, fresh()) if value is None else torch.full((2**22 + 5,), value)
    exact = float(shard.double().square().sum())
    assert float(reference.square_norm([shard])) == pytest.approx(exact, rel=5e-7)


def test_one_launch_takes_all_shards(monkeypatch):
    launches = []
    run = type(sum_kernel).__getitem__

    def counted(self, grid):
        launches.append(grid)
        return run(self, grid)

    monkeypatch.setattr(type(sum_kernel), "__getitem__", counted)
    norm_of(shards_of((BLOCK + 1, 3, 4097)))
    assert launches == [(4,)]


def test_one_table_serves_every_step():
    shards = shards_of((300, 4))
    table = table_of(shards)
    for shard in shards:
        shard.fill_(2.0)
    assert float(square_norm(shards, table)) == 4 * 304


def test_views_that_begin_anywhere_in_a_buffer_are_shards():
    buffer = random((5000,), torch.float32, fresh())
    parts = [buffer[1:2500], buffer[2503:2503], buffer[2503:]]
    assert any(part.data_ptr() % 16 for part in parts)
    assert float(norm_of(parts)) == pytest.approx(exact_sum(parts), rel=5e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_what_has_no_finite_square_makes_the_sum_not_finite(bad):
    shards = shards_of((100, 100))
    shards[1][99] = bad
    assert not norm_of(shards).isfinite()


def test_float64_shards_add_in_float64():
    shards = [torch.full((BLOCK,), 1e30, dtype=torch.float64)]
    assert float(norm_of(shards)) == pytest.approx(BLOCK * 1e60, rel=1e-13)


def test_the_operation_is_known_to_torch():
    shards = shards_of((130, 7))
    torch.library.opcheck(square_norm, (shards, table_of(shards)))
    found = norm_of([shard.to("meta") for shard in shards])
    assert found.dtype == torch.float64 and found.shape == () and found.device.type == "meta"
    compiled = torch.compile(lambda shards, table: square_norm(shards, table) * 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(shards, table_of(shards)), norm_of(shards))


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([], "square_norm: there are no shards"),
        ([torch.zeros(4, 2)], r"square_norm: a shard has shape \[4, 2\], must be \[8\]"),
        ([torch.zeros(8)[::2]], "square_norm: a shard has stride 2, must be contiguous"),
        ([torch.zeros(8), torch.zeros(8).double()], "square_norm: a shard is torch.float64, must be torch.float32"),
    ],
)
def test_shards_it_refuses(shards, message):
    with pytest.raises(ValueError, match=message):
        table_of(shards)


def test_a_table_of_other_shards_is_refused():
    table = table_of([torch.zeros(BLOCK + 1)])
    with pytest.raises(ValueError, match=r"square_norm: table has shape \[2, 2\], must be \[1, 2\]"):
        square_norm([torch.zeros(BLOCK)], table)
    with pytest.raises(ValueError, match=r"^square_norm: there are no shards"):
        square_norm([], table)
    with pytest.raises(ValueError, match=r"square_norm: shards\[0\] is torch.bfloat16, must be torch.float32 or"):
        square_norm([torch.zeros(8, dtype=torch.bfloat16)], table)
