"""Every kernel, in the interpreter, against its reference in float64; and what it asks of memory, and in what order.

tests/kernels/cases holds the operations and their sizes.
"""

import pytest
import torch
from support.interpreter import program_order, watch_traffic
from support.kernels.cases import CASES
from support.kernels.harness import Case, copied, error, fresh, size_of, strided, surrounded, untouched, widened

RUNS = [(case, size) for case in CASES for size in case.sizes]
EACH_RUN = pytest.mark.parametrize(("case", "size"), RUNS, ids=lambda value: str(value).replace(" ", ""))
EACH_CASE = pytest.mark.parametrize("case", CASES, ids=str)


def expected_of(case: Case, arguments):
    return case.reference(*copied(widened(arguments)))


def assert_close(case: Case, found, expected, dtype: torch.dtype) -> None:
    tolerance = {torch.float32: case.tolerance, torch.float64: 1e-12}[dtype]
    assert len(found) == len(expected)
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.shape == theirs.shape, f"output {index}"
        largest, _ = error(ours, theirs)
        assert largest <= tolerance * size_of(theirs), f"output {index}: {largest} of {size_of(theirs)}"


@EACH_RUN
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_kernel_equals_its_reference_in_float64(case, size, dtype):
    arguments = case.inputs(size, dtype, fresh())
    assert_close(case, case.kernel(*copied(arguments)), expected_of(case, arguments), dtype)


@EACH_RUN
def test_bfloat16_errs_at_most_twice_as_much_as_torch_in_bfloat16(case, size):
    """Backward three times. Both against float64, in the largest and the mean square; half a last place beside it."""
    arguments = case.inputs(size, torch.bfloat16, fresh())
    exact = expected_of(case, arguments)
    ours = case.kernel(*copied(arguments))
    torchs = case.reference(*copied(arguments))
    factor = 3 if case.backward else 2
    for index, (one, other, right) in enumerate(zip(ours, torchs, exact, strict=True)):
        assert one.dtype == other.dtype, f"output {index}"
        place = 2**-9 if one.dtype == torch.bfloat16 else 2**-22
        for kind, mine, theirs in zip(("largest", "rms"), error(one, right), error(other, right), strict=True):
            assert mine <= factor * theirs + place * size_of(right), f"output {index}, {kind}: {mine}, torch {theirs}"


@EACH_CASE
def test_inputs_that_are_not_contiguous_give_the_same_bits(case):
    arguments = case.inputs(case.sizes[0], torch.float32, fresh())
    plain = case.kernel(*copied(arguments))
    for ours, other in zip(case.kernel(*strided(arguments)), plain, strict=True):
        assert torch.equal(ours, other) or error(ours, other)[0] == 0


@EACH_CASE
@pytest.mark.parametrize(
    "seed", [None, 1, pytest.param(2, marks=pytest.mark.nightly)], ids=["reverse", "shuffled", "shuffled-again"]
)
def test_the_order_of_programs_changes_no_bit(case, seed):
    for size in case.sizes:
        arguments = case.inputs(size, torch.float32, fresh())
        plain = case.kernel(*copied(arguments))
        with program_order(seed):
            permuted = case.kernel(*copied(arguments))
        for ours, other in zip(permuted, plain, strict=True):
            assert torch.equal(ours.flatten().view(torch.uint8), other.flatten().view(torch.uint8))


@EACH_RUN
def test_bytes_asked_for_are_the_closed_form_and_no_lane_is_out_of_bounds(case, size):
    for dtype in (torch.bfloat16, torch.float32):
        arguments = copied(case.inputs(size, dtype, fresh()))
        with watch_traffic(*arguments if case.by_address else ()) as traffic:
            case.kernel(*arguments)
        cost = case.cost(size, dtype.itemsize, 4)
        found = traffic.arguments.values()
        assert traffic.outside == 0
        assert sum(a.distinct_loaded for a in found) == cost.read, traffic.arguments
        assert traffic.stored == sum(a.distinct_stored for a in found) == cost.written, traffic.arguments
        assert traffic.loaded == cost.read + cost.again, traffic.arguments


@EACH_CASE
def test_poison_in_outputs_and_around_every_buffer_is_neither_read_nor_overwritten(case, poisoned_memory):
    for size in case.sizes:
        arguments = case.inputs(size, torch.float32, fresh())
        plain = case.kernel(*copied(arguments))
        inside, guards = surrounded(arguments)
        for ours, other in zip(case.kernel(*inside), plain, strict=True):
            assert torch.equal(ours, other) or error(ours, other)[0] == 0
        assert_close(case, plain, expected_of(case, arguments), torch.float32)
        assert all(map(untouched, guards))
