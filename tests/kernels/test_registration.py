"""Every operation as PyTorch knows it, and what every operation refuses."""

import pytest
import torch
from support.kernels.calls import calls
from support.kernels.harness import copied
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

CALLS = calls()
EACH = pytest.mark.parametrize("call", CALLS, ids=str)
DIFFERENTIABLE = (
    "rms_norm", "add_rms_norm", "swiglu", "attention", "cross_entropy_statistics", "entropy_statistics",
)  # fmt: skip


def test_the_calls_are_of_all_operations():
    registered = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("megatron_lite:")}
    assert {f"megatron_lite::{call}" for call in CALLS} == registered


@EACH
def test_torchs_own_checks_of_an_operation_find_nothing(call):
    """Schema, gradient, fake form, and what is traced with sizes left open."""
    given = copied(call.arguments)
    if call.name in DIFFERENTIABLE:
        given = tree_map_only(torch.Tensor, lambda x: x.requires_grad_() if x.is_floating_point() else x, given)
    torch.library.opcheck(call.operation, given)


def outcome(call, operation=None):
    """What it returns, and what it wrote into copies of its arguments."""
    given = copied(call.arguments)
    returned = (operation or call.operation)(*given)
    results = [] if returned is None else list(returned) if isinstance(returned, tuple) else [returned]
    return [*results, *(given[at] for at in call.written)]


@EACH
def test_compiled_as_one_graph_it_gives_the_same_bits(call):
    torch.compiler.reset()
    compiled = torch.compile(lambda *given: call.operation(*given), fullgraph=True, backend="aot_eager")
    for ours, plain in zip(outcome(call, compiled), outcome(call), strict=True):
        assert torch.equal(ours, plain)


@EACH
def test_on_meta_tensors_the_outputs_are_laid_out_as_real_ones(call):
    given = tree_map_only(torch.Tensor, lambda x: x.to("meta"), call.arguments)
    found = outcome(type(call)(call.operation, *given))
    for ours, real in zip(found, outcome(call), strict=True):
        assert ours.is_meta
        assert (ours.shape, ours.dtype, ours.stride()) == (real.shape, real.dtype, real.stride())


PRODUCTS = {
    # 4 heads of 8, 5 queries and keys: 2 products forward and 5 backward, whatever ranges hide.
    "attention": 2 * 2 * 4 * 8 * 25,
    "attention_backward": 5 * 2 * 4 * 8 * 25,
    "attention_backward_": 5 * 2 * 4 * 8 * 25,
    "add_product_": 2 * 6 * 4 * 5,
}


@EACH
def test_torchs_counter_of_flops_counts_products_of_matrices_and_no_more(call):
    """As of torch's own operations: a norm or an activation counts nothing."""
    with FlopCounterMode(display=False) as counter:
        call.operation(*copied(call.arguments))
    assert counter.get_total_flops() == PRODUCTS.get(call.name, 0)


EACH_TENSOR = [(call, label) for call in CALLS for label in call.tensors]


@pytest.mark.parametrize(("call", "label"), [pair for pair in EACH_TENSOR if len(pair[0].tensors) > 1], ids=str)
def test_a_tensor_on_another_device_is_named(call, label):
    """The tensor itself, or another one where it is what others are compared with."""
    changed = call.changed(label, lambda tensor: tensor.to("meta"))
    on_cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    # Beside a meta tensor torch asks for the fake form; what it would launch on a GPU, beside one left on the CPU.
    for run in (changed.operation, lambda *given: changed.operation.redispatch(on_cpu, *given)):
        with pytest.raises(ValueError, match=rf"^{call.name}: .+ is on \w+, must be on \w+, as its other inputs"):
            run(*changed.arguments)


CHANGES = {
    "deeper": lambda x: x.unsqueeze(0).expand(2, *x.shape).contiguous(),
    "flat": lambda x: x.new_zeros(()) if x.dim() else x.new_zeros(1),
    "longer": lambda x: torch.cat([x, x[..., :1]], -1) if x.dim() else x.new_zeros(2),
    "dtype": lambda x: x.int() if x.is_floating_point() else x.double(),
}
# Rows may have any shape, and logits more columns than the vocabulary.
FREE = [("rms_norm", "x", "deeper"), ("swiglu", "gate_up", "deeper"), ("cross_entropy_statistics", "logits", "longer"),
        ("cross_entropy_gradient_", "logits", "longer"), ("entropy_statistics", "logits", "longer"),
        ("entropy_gradient_", "logits", "longer")]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "label", "what"),
    [(call, label, what) for call, label in EACH_TENSOR for what in CHANGES if (call.name, label, what) not in FREE],
    ids=str,
)
def test_a_tensor_of_another_shape_or_dtype_is_refused_by_name(call, label, what):
    changed = call.changed(label, CHANGES[what])
    with pytest.raises(ValueError, match=f"^{call.name}: .*must"):
        changed.operation(*copied(changed.arguments))
