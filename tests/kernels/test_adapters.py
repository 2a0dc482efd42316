"""Other packages behind our signatures: every call fits the recorded signature, and every layout what it computes."""

import sys

import pytest
import torch
from megatron_lite.kernels.adapters import apex, flash_attn
from megatron_lite.kernels.attention import split_packed as parts_of
from megatron_lite.kernels.reference import adamw, attention, weight_gradient
from megatron_lite.kernels.visibility import visible_from, visible_in_documents
from support.kernels.flash_attn import stand_in_for_flash_attn
from support.kernels.harness import fresh, random
from support.kernels.stand_ins import recorded, stand_in, stand_in_for_apex_adam

SHAPE = (2, 4, 2, 12, 8)  # B, H, G, T, D
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 7, [0] * 1 + [1] * 3 + [2] * 8])
FLASH = pytest.mark.parametrize("entry", recorded("flash_attn"), ids=lambda entry: entry["version"][:12])


def inputs(keys: int = 12):
    """q, k, v and an output's gradient in bfloat16; q as a view of a packed buffer would be, not contiguous."""
    batch, heads, groups, length, width = SHAPE
    generator = fresh()
    q = random((batch, length, heads, width), torch.bfloat16, generator).transpose(1, 2)
    k, v = (random((batch, groups, keys, width), torch.bfloat16, generator) for _ in range(2))
    return q, k, v, random(q.shape, torch.bfloat16, generator)


def packed():
    position = torch.arange(12)
    return visible_in_documents(DOCUMENTS, position, position)


@FLASH
@pytest.mark.parametrize(
    ("causal", "keys", "documents"), [(True, 12, False), (False, 12, False), (False, 7, False), (False, 12, True)],
    ids=["causal", "whole", "fewer keys", "packed"],
)  # fmt: skip
def test_flash_attention_is_called_as_its_signature_has_it_and_its_layouts_are_ours(
    monkeypatch, entry, causal, keys, documents
):
    stand_in_for_flash_attn(monkeypatch, entry)
    q, k, v, gradient = inputs(keys)
    visible = packed() if documents else None
    output, log_sum = flash_attn.attention(q, k, v, causal, visible)
    expected = attention.attention(q, k, v, causal, visible)
    torch.testing.assert_close((output, log_sum), expected, rtol=2e-2, atol=1e-2)
    assert (output.shape, log_sum.shape) == (expected[0].shape, expected[1].shape)
    found = flash_attn.attention_backward(gradient, q, k, v, output.float(), log_sum, causal, visible)
    ours = attention.attention_backward(gradient, q, k, v, output, log_sum, causal, visible)
    torch.testing.assert_close(found, ours, rtol=2e-2, atol=1e-2)


@FLASH
def test_flash_attention_takes_queries_by_group(monkeypatch, entry):
    stand_in_for_flash_attn(monkeypatch, entry)
    q, k, v, gradient = inputs()
    grouped = q.unflatten(1, (2, 2))
    plain, other = flash_attn.attention(q, k, v, True, None), flash_attn.attention(grouped, k, v, True, None)
    assert all(map(torch.equal, plain, other))
    dq, dk, dv = flash_attn.attention_backward(gradient, grouped, k, v, *other, True, None)
    expected = flash_attn.attention_backward(gradient, q, k, v, *plain, True, None)
    assert dq.shape == grouped.shape
    assert all(map(torch.equal, (dq.flatten(1, 2), dk, dv), expected))


@FLASH
@pytest.mark.parametrize(
    ("batch", "groups", "documents", "in_place"),
    [
        (2, 2, False, "dk dv"),  # queries of several groups lie apart
        (2, 1, False, "dq dk dv"),
        (1, 1, True, "dq dk dv"),
        (2, 1, True, ""),  # sequences alternate in memory, and the package wants one after the other
        (1, 2, True, "dk dv"),
    ],
)
def test_flash_attention_writes_gradients_into_a_packed_buffer(monkeypatch, entry, batch, groups, documents, in_place):
    given = {}
    stand_in_for_flash_attn(monkeypatch, entry, given)
    generator = fresh()
    qkv = random((12, batch, groups, 4, 8), torch.bfloat16, generator)
    gradient = random((12, batch, 2 * groups, 8), torch.bfloat16, generator).permute(1, 2, 0, 3)
    position = torch.arange(12)
    visible = visible_in_documents(DOCUMENTS[:batch], position, position) if documents else None
    output, log_sum = flash_attn.attention(*parts_of(qkv), True, visible)
    assert documents or output.permute(2, 0, 1, 3).is_contiguous()  # joining heads is a view
    buffers = [torch.full_like(qkv, float("nan")) for _ in range(2)]
    flash_attn.attention_backward_(gradient, *parts_of(qkv), output, log_sum, True, visible, *parts_of(buffers[0]))
    attention.attention_backward_(gradient, *parts_of(qkv), output, log_sum, True, visible, *parts_of(buffers[1]))
    torch.testing.assert_close(*buffers, rtol=2e-2, atol=1e-2)
    memory = buffers[0].untyped_storage().data_ptr()
    assert " ".join(name for name in given if given[name].untyped_storage().data_ptr() == memory) == in_place


def test_flash_attention_has_sizes_alone_on_meta_tensors():
    qkv = torch.empty(12, 2, 2, 4, 8, dtype=torch.bfloat16, device="meta")
    output, log_sum = flash_attn.attention(*parts_of(qkv), True, None)
    assert (output.shape, output.dtype, output.device) == ((2, 4, 12, 8), torch.bfloat16, qkv.device)
    assert (log_sum.shape, log_sum.dtype) == ((2, 4, 12), torch.float32)
    found = flash_attn.attention_backward(output, *parts_of(qkv), output, log_sum, True, None)
    assert [x.shape for x in found] == [x.shape for x in parts_of(qkv)]
    flash_attn.attention_backward_(output, *parts_of(qkv), output, log_sum, True, None, *parts_of(qkv))


def test_flash_attention_refuses_a_place_of_another_shape():
    q, k, v, gradient = inputs()
    with pytest.raises(ValueError, match=r"attention_backward_: dk has shape \[2, 2, 7, 8\], must be \[2, 2, 12, 8\]"):
        flash_attn.attention_backward_(gradient, q, k, v, q, q[..., 0].float(), True, None, q, k[:, :, :7], v)


def test_packed_documents_are_told_by_where_they_begin_and_the_longest():
    visible = packed()
    lengths = flash_attn.lengths_of(visible)
    assert flash_attn.lengths_of(visible) is lengths  # read back once for all layers, forward and backward
    assert lengths.bounds.tolist() == [0, 5, 12, 13, 16, 24] and lengths.longest == 8
    assert lengths.bounds.dtype == torch.int32


def test_key_ranges_of_other_shapes_are_refused():
    position = torch.arange(12)
    full = torch.full((1, 12), 12, dtype=torch.int32)
    others = {
        "a ring's second chunk": visible_in_documents(DOCUMENTS, position[6:], position),
        "fewer keys": visible_in_documents(DOCUMENTS, position, position[:6]),
        "all keys": visible_from(torch.zeros_like(full), full, 12),
        "a window": visible_from((position - 3).clamp(min=0).int()[None], (position + 1).int()[None], 12),
    }
    for visible in others.values():
        with pytest.raises(ValueError, match="flash-attn attends within whole packed documents alone"):
            flash_attn.lengths_of(visible)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.float(), "attention: q is torch.float32, must be torch.bfloat16 or torch.float16"),
        (lambda x: x[..., :4], "attention: head dimension is 4, must be a multiple of 8 up to 256"),
    ],
)
def test_flash_attention_refuses_what_it_has_no_kernel_for(change, message):
    with pytest.raises(ValueError, match=message):
        flash_attn.attention(*map(change, inputs()[:3]), True, None)


def test_packages_are_told_by_their_compiled_modules_and_not_imported(monkeypatch):
    assert not flash_attn.installed() and not flash_attn.installed(flash_attn.THIRD)
    assert not apex.installed() and not apex.installed(apex.PRODUCT)
    for name in ("flash_attn", "flash_attn_2_cuda", "amp_C"):
        stand_in(monkeypatch, {"module": name, "functions": {}, "source": ""}, {})
    assert flash_attn.installed() and apex.installed()
    assert not flash_attn.installed(flash_attn.THIRD) and not apex.installed(apex.PRODUCT)


def test_another_project_named_apex_is_not_taken_for_it(monkeypatch):
    stand_in(monkeypatch, {"module": "apex", "functions": {}, "source": ""}, {})
    assert "apex" in sys.modules and not apex.installed()


@pytest.mark.parametrize("decayed", [0, 7, 20])
@pytest.mark.parametrize("clips", [False, True], ids=["unclipped", "clipped"])
def test_apex_is_called_as_its_signature_has_it_and_updates_as_we_do(monkeypatch, decayed, clips):
    stand_in_for_apex_adam(monkeypatch)
    generator = fresh()
    state = [random((20,), torch.float32, generator) for _ in range(4)]
    state[3].abs_()
    state.append(torch.zeros(20, dtype=torch.bfloat16))
    clip = torch.tensor(0.3) if clips else None
    expected = [tensor.clone() for tensor in state]
    rest = (clip, decayed, 5, 1e-2, [0.9, 0.95], 1e-8, 0.1)
    apex.adamw_(*state, *rest)
    adamw.adamw_(*expected, *rest)
    torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-7)


def test_apex_adds_products_as_we_do(monkeypatch):
    [entry] = [entry for entry in recorded("apex") if entry["module"] == apex.PRODUCT]

    def product(input_2d, d_output_2d, d_weight):
        assert input_2d.is_contiguous() and d_output_2d.is_contiguous()
        d_weight += d_output_2d.float().t() @ input_2d.float()

    stand_in(monkeypatch, entry, {"wgrad_gemm_accum_fp32": product})
    generator = fresh()
    gradient = random((6, 4), torch.float32, generator)
    dy, x = (random((count, 5), torch.bfloat16, generator).t() for count in (6, 4))
    expected = gradient.clone()
    apex.add_product_(gradient, dy, x)
    weight_gradient.add_product_(expected, dy, x)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: apex.adamw_(*(torch.zeros(3).double() for _ in range(4)), None, None, 0, 1, 1.0, (0, 0), 1.0, 0.0),
         "adamw_: master is torch.float64, must be torch.float32"),
        (lambda: apex.adamw_(*(torch.zeros(2**31, device="meta") for _ in range(4)), None, None, 0, 1, 1.0, (0, 0),
                             1.0, 0.0),
         "adamw_: apex updates at most 2147483647 elements of a shard, master has 2147483648"),
        (lambda: apex.add_product_(torch.zeros(4, 3).t(), torch.zeros(5, 3), torch.zeros(5, 4)),
         r"add_product_: gradient has strides \(1, 3\), must be contiguous"),
        (lambda: apex.add_product_(torch.zeros(3, 4).bfloat16(), torch.zeros(5, 3), torch.zeros(5, 4)),
         "add_product_: gradient is torch.bfloat16, must be torch.float32"),
    ],
)  # fmt: skip
def test_apex_refuses_what_it_has_no_kernel_for(call, message):
    with pytest.raises(ValueError, match=message):
        call()
