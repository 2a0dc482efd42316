"""What PyTorch's attention would be asked on a GPU: the operations as their schemas have them, on fake CUDA tensors for
sizes, and through stand-ins that compute for numbers. No GPU has run this.
"""

import pytest
import torch
from megatron_lite.kernels.attention import split_packed
from megatron_lite.kernels.reference import attention as reference
from megatron_lite.kernels.visibility import Visible
from support.kernels.harness import fresh, random
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_lite.parallel.context import parts_of

FORWARD = (
    "aten::_scaled_dot_product_flash_attention(Tensor query, Tensor key, Tensor value, float dropout_p=0., "
    "bool is_causal=False, bool return_debug_mask=False, *, float? scale=None) -> (Tensor output, Tensor logsumexp, "
)
BACKWARD = (
    "aten::_scaled_dot_product_flash_attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, "
    "Tensor out, Tensor logsumexp, Tensor cum_seq_q, Tensor cum_seq_k, SymInt max_q, SymInt max_k, float dropout_p, "
    "bool is_causal, Tensor philox_seed, Tensor philox_offset, *, float? scale=None) -> (Tensor grad_query, "
    "Tensor grad_key, Tensor grad_value)"
)


class Called(TorchDispatchMode):
    """Each operation with PyTorch's mode of determinism at its call; in 2, what has no fixed order is an error."""

    def __init__(self):
        super().__init__()
        self.modes = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.modes[function] = torch.get_deterministic_debug_mode()
        return function(*args, **(kwargs or {}))


def packed(dtype: torch.dtype, head_dim: int, groups: int = 2) -> torch.Tensor:
    return torch.empty(12, 3, groups, 4, head_dim, dtype=dtype, device="cuda")


def test_the_operations_are_those_that_were_read():
    assert str(reference._GPU._schema).startswith(FORWARD)
    assert str(reference._GPU_BACKWARD._schema) == BACKWARD


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_a_gpu_runs_the_fused_operations_with_sums_in_a_fixed_order(dtype, causal):
    with FakeTensorMode(), Called() as called:
        q, k, v = parts_of(packed(dtype, 16))
        output, log_sum = reference.attention(q, k, v, causal, None)
        gradients = reference.attention_backward(output, q, k, v, output.float(), log_sum, causal, None)
    assert called.modes[reference._GPU] == 0 and called.modes[reference._GPU_BACKWARD] == 2
    assert torch.get_deterministic_debug_mode() == 0
    assert (output.shape, output.dtype, output.device.type) == ((3, 4, 12, 16), dtype, "cuda")
    assert output.permute(2, 0, 1, 3).is_contiguous()  # joining heads is a view
    assert (log_sum.shape, log_sum.dtype) == ((3, 4, 12), torch.float32)
    assert [(x.shape, x.dtype) for x in gradients] == [(x.shape, dtype) for x in (q, k, v)]


@pytest.mark.parametrize(
    ("dtype", "head_dim"), [(torch.float32, 16), (torch.float64, 16), (torch.bfloat16, 12), (torch.bfloat16, 264)]
)
def test_what_the_fused_operations_lack_is_computed_as_defined(dtype, head_dim):
    with FakeTensorMode(), Called() as called:
        q, k, v = parts_of(packed(dtype, head_dim))
        output, log_sum = reference.attention(q, k, v, False, None)
    assert reference._GPU not in called.modes and torch.ops.aten.bmm.default in called.modes
    assert (output.shape, output.dtype) == ((3, 4, 12, head_dim), dtype)
    assert log_sum.dtype == torch.promote_types(dtype, torch.float32)


def test_ranges_are_computed_as_defined():
    with FakeTensorMode(), Called() as called:
        q, k, v = parts_of(packed(torch.bfloat16, 16))
        visible = Visible(*(torch.empty(3, 12, dtype=torch.int32, device="cuda") for _ in range(4)))
        output, log_sum = reference.attention(q, k, v, False, visible)
        reference.attention_backward(output, q, k, v, output, log_sum, False, visible)
    assert not {reference._GPU, reference._GPU_BACKWARD} & called.modes.keys()


def by_name(operation, function):
    """A function that gets an operation's arguments by its schema's names."""

    def call(*arguments):
        names = [argument.name for argument in operation._schema.arguments]
        return function(**dict(zip(names, arguments, strict=False)))

    return call


def theirs(query, key, value, dropout_p, is_causal):
    assert dropout_p == 0 and all(x.stride(-1) == 1 for x in (query, key, value))
    return (*reference._CPU(query, key, value, dropout_p, is_causal), *[None] * 7)


def theirs_backward(
    grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, philox_seed,
    philox_offset,
):  # fmt: skip
    """With the checks of PyTorch's source, csrc flash_api.cpp, mha_bwd."""
    assert cum_seq_q is cum_seq_k is None and dropout_p == 0
    assert (max_q, max_k) == (query.shape[2], key.shape[2])
    assert all(x.dtype == query.dtype for x in (grad_out, key, value, out))
    assert all(x.stride(-1) == 1 for x in (query, key, value))
    assert logsumexp.dtype == torch.float32 and logsumexp.is_contiguous()  # it is read by its address alone
    assert philox_seed.dtype == philox_offset.dtype == torch.uint64
    return reference._CPU_BACKWARD(grad_out, query, key, value, out, logsumexp, dropout_p, is_causal)


@pytest.mark.parametrize(("causal", "queries"), [(True, slice(0, 12)), (False, slice(0, 12)), (False, slice(6, 12))])
def test_what_a_gpu_is_asked_gives_the_definitions_numbers(monkeypatch, causal, queries):
    generator = fresh()
    q, k, v = split_packed(random((12, 3, 2, 4, 8), torch.bfloat16, generator))
    q = q[..., queries, :]
    # A ring hands on a part of the log-sum-exp of all queries, and an output in what it adds in.
    gradient = random((3, 12, 4, 8), torch.bfloat16, generator).transpose(1, 2)[:, :, queries]
    monkeypatch.setattr(reference, "_FUSED", ())
    expected, whole = reference.attention(q, k, v, causal, None)
    log_sum = torch.zeros(3, 4, 24)[:, :, queries].copy_(whole)
    expected_gradients = reference.attention_backward(gradient, q, k, v, expected, log_sum, causal, None)
    monkeypatch.setattr(reference, "_gpu_has_it", lambda q: True)
    monkeypatch.setattr(reference, "_GPU", by_name(reference._GPU, theirs))
    monkeypatch.setattr(reference, "_GPU_BACKWARD", by_name(reference._GPU_BACKWARD, theirs_backward))
    found = reference.attention(q, k, v, causal, None)
    torch.testing.assert_close(found, (expected, whole), rtol=2e-2, atol=1e-2)
    gradients = reference.attention_backward(gradient, q, k, v, expected.float(), log_sum, causal, None)
    torch.testing.assert_close(gradients, expected_gradients, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("before", [0, 1, 2])
def test_the_process_keeps_its_mode_of_determinism(before):
    torch.set_deterministic_debug_mode(before)
    try:
        with pytest.raises(ZeroDivisionError), reference._fixed_order():
            assert torch.get_deterministic_debug_mode() == 2
            1 / 0  # noqa: B018
        assert torch.get_deterministic_debug_mode() == before
    finally:
        torch.set_deterministic_debug_mode(0)
