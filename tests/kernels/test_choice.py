"""Which kernels the keys mean where, what is refused in one line, and where the chosen operations come from."""

import re

import pytest
import triton
from megatron_lite.kernels import adamw, rms_norm, square_norm
from megatron_lite.kernels import attention as triton_attention
from megatron_lite.kernels import weight_gradient as own_weight_gradient
from megatron_lite.kernels.adapters import apex, flash_attn
from megatron_lite.kernels.choice import Work, choose, kernels_of, optimizer_kernels_of
from megatron_lite.kernels.reference import adamw as torch_adamw
from megatron_lite.kernels.reference import attention as reference
from megatron_lite.kernels.reference import square_norm as torch_square_norm
from megatron_lite.kernels.reference import weight_gradient
from support.kernels.stand_ins import stand_in

from megatron_lite.config import config_from_tree
from megatron_lite.errors import UsageError
from megatron_lite.model.build import choice_of

GPU, CPU = Work("cuda", "bfloat16", 128), Work("cpu", "float32", 128)
TREE = {
    "model": {"preset": "nano"},
    "optim": {"lr": 1e-3},
    "train": {"steps": 1, "global_batch_size": 4, "sequence_length": 32, "run_dir": "unused"},
}


def put(monkeypatch, *modules):
    """Modules by name, empty, where packages would be."""
    for name in modules:
        stand_in(monkeypatch, {"module": name, "functions": {}, "source": ""}, {})


def with_flash_attn(monkeypatch):
    put(monkeypatch, "flash_attn", "flash_attn_2_cuda")


def configured(**sections):
    return config_from_tree({name: TREE.get(name, {}) | sections.get(name, {}) for name in {*TREE, *sections}})


@pytest.mark.parametrize(
    ("work", "attention", "backend", "expected"),
    [
        (CPU, "auto", "auto", ("torch", "sdpa", "torch")),
        (GPU, "auto", "auto", ("triton", "triton", "triton")),
        (GPU, "auto", "torch", ("torch", "sdpa", "torch")),
        (GPU, "sdpa", "auto", ("triton", "sdpa", "triton")),
        (CPU, "triton", "torch", ("torch", "triton", "torch")),
        (GPU, "flash_attn", "torch", ("torch", "flash_attn", "torch")),
    ],
)
def test_keys_mean_these_kernels(monkeypatch, work, attention, backend, expected):
    with_flash_attn(monkeypatch)
    choice = choose(backend, attention, "auto", work)
    assert (choice.backend, choice.attention, choice.product) == expected


@pytest.mark.parametrize(
    ("work", "misfit"),
    [
        (Work("cuda", "float32", 128), "train.dtype = float32 on a GPU: bfloat16 alone"),
        (Work("cuda", "float64", 128), "train.dtype = float64 on a GPU: bfloat16 alone"),
        (Work("cuda", "bfloat16", 320), "heads of 320 elements: at most 256"),
        (Work("cpu", "float32", 320), "heads of 320 elements: at most 256"),
    ],
)
def test_where_attention_has_no_tile_auto_takes_pytorchs_and_says_so_and_triton_is_refused(work, misfit):
    choice = choose("triton", "auto", "auto", work)
    assert (choice.backend, choice.attention) == ("triton", "sdpa")
    assert f"triton's attention takes no {misfit}" in str(choice) and "\n" not in str(choice)
    with pytest.raises(ValueError, match=re.escape(f"kernels.attention = triton takes no {misfit}; set")):
        choose("auto", "triton", "auto", work)


def test_a_configurations_dtype_and_heads_reach_the_choice():
    config = configured(train={"dtype": "float32"}, kernels={"backend": "triton"})
    assert choice_of(config, "cuda").attention == "sdpa"
    assert choice_of(configured(train={"dtype": "bfloat16"}), "cuda").attention == "triton"


def test_auto_leaves_flash_attn_alone_where_it_is_installed(monkeypatch):
    with_flash_attn(monkeypatch)
    assert choose("auto", "auto", "auto", GPU).attention == "triton"


@pytest.mark.parametrize(
    ("work", "backend", "expected"),
    [
        (GPU, "triton", "apex"),
        (GPU, "torch", "torch"),
        (Work("cuda", "float32", 128), "triton", "triton"),
        (Work("cpu", "bfloat16", 128), "triton", "triton"),
    ],
)
def test_weight_gradients_are_apexs_where_it_is_installed_and_the_log_line_says_so(
    monkeypatch, work, backend, expected
):
    put(monkeypatch, apex.PRODUCT)
    choice = choose(backend, "auto", "auto", work)
    assert choice.product == expected
    assert f"weight gradients {expected}" in str(choice)
    homes = {"apex": apex, "torch": weight_gradient, "triton": own_weight_gradient}
    assert kernels_of(choice).add_product_ is homes[expected].add_product_


@pytest.mark.parametrize(
    ("attention", "home"), [("flash_attn", flash_attn), ("sdpa", reference), ("triton", triton_attention)]
)
def test_each_attention_is_one_module_behind_the_same_three_functions(monkeypatch, attention, home):
    with_flash_attn(monkeypatch)
    kernels = kernels_of(choose("triton", attention, "auto", GPU))
    for name in ("attention", "attention_backward", "attention_backward_"):
        assert getattr(kernels, name) is getattr(home, name)
    assert kernels.rms_norm is rms_norm.rms_norm


@pytest.mark.parametrize(
    ("work", "backend", "optimizer", "update", "norm"),
    [
        (CPU, "auto", "auto", torch_adamw, torch_square_norm),
        (GPU, "auto", "auto", adamw, square_norm),
        (CPU, "triton", "auto", adamw, square_norm),
        (CPU, "torch", "triton", adamw, square_norm),
        (GPU, "triton", "torch", torch_adamw, torch_square_norm),
        (GPU, "auto", "apex", apex, square_norm),
        (GPU, "torch", "apex", apex, torch_square_norm),
    ],
)
def test_the_update_and_the_norm_are_the_optimizers_and_apexs_norm_is_the_backends(
    monkeypatch, work, backend, optimizer, update, norm
):
    put(monkeypatch, apex.OPTIMIZER)
    choice = choose(backend, "auto", optimizer, work)
    kernels = optimizer_kernels_of(choice)
    assert kernels.adamw_ is update.adamw_
    assert kernels.square_norm is norm.square_norm and kernels.table_of is norm.table_of
    shown = {torch_adamw: "torch", adamw: "triton", apex: "apex"}[update]
    assert f"optimizer {shown} (" in str(choice)


def test_auto_leaves_apexs_optimizer_alone_where_it_is_installed(monkeypatch):
    put(monkeypatch, apex.OPTIMIZER)
    assert choose("auto", "auto", "auto", GPU).optimizer == "triton"


def test_apex_does_not_update_float64(monkeypatch):
    put(monkeypatch, apex.OPTIMIZER)
    with pytest.raises(
        UsageError, match=r"optim\.backend = apex with train\.dtype = float64: apex updates float32 alone"
    ):
        choice_of(configured(train={"dtype": "float64"}, optim={"backend": "apex"}), "cuda")


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"kernels": {"backend": "triton"}}, "kernels.backend"),
        ({"kernels": {"attention": "triton"}}, "kernels.attention"),
        ({"optim": {"backend": "triton"}}, "optim.backend"),
    ],
)
def test_triton_on_a_cpu_outside_its_interpreter_is_refused_by_the_key_that_asks(monkeypatch, sections, key):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(
        UsageError, match=rf"{re.escape(key)} = triton on a CPU .* or {re.escape(key)} = auto"
    ) as caught:
        choice_of(configured(**sections), "cpu")
    assert "\n" not in str(caught.value)


BFLOAT16 = {"train": {"dtype": "bfloat16"}, "kernels": {"attention": "flash_attn"}}
RING = {"parallel": {"context": 2}, "data": {"document_mask": True}}


@pytest.mark.parametrize(
    ("sections", "device", "complaint"),
    [
        (BFLOAT16, "cpu", "kernels.attention = flash_attn: flash-attn has no kernels for a CPU"),
        (BFLOAT16 | {"train": {"dtype": "float32"}}, "cuda", "train.dtype = float32: must be bfloat16"),
        (
            BFLOAT16 | {"model": {"preset": "nano", "hidden_size": 12 * 8, "num_attention_heads": 8}},
            "cuda",
            "heads of 12 elements: must be a multiple of 8 up to 256",
        ),
        (BFLOAT16 | RING, "cuda", "set parallel.context_kind = ulysses"),
    ],
)
def test_what_flash_attn_cannot_do_ends_in_one_line(monkeypatch, sections, device, complaint):
    with_flash_attn(monkeypatch)
    with pytest.raises(UsageError) as caught:
        choice_of(configured(**sections), device)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_flash_attn_takes_documents_within_a_rank_or_under_ulysses(monkeypatch):
    with_flash_attn(monkeypatch)
    for parallel in ({"context": 1}, {"context": 2, "context_kind": "ulysses"}):
        config = configured(**BFLOAT16, data={"document_mask": True}, parallel=parallel)
        assert choice_of(config, "cuda").attention == "flash_attn"


def test_packages_that_are_not_installed_end_in_one_line():
    with pytest.raises(UsageError, match=r"flash-attn is not installed here \(no flash_attn and flash_attn_2_cuda\)"):
        choice_of(configured(**BFLOAT16), "cuda")
    with pytest.raises(ValueError, match=r"optim\.backend = apex: apex is not installed here \(no amp_C\)"):
        choose("auto", "auto", "apex", GPU)
    with pytest.raises(ValueError, match=r"optim\.backend = apex: apex has no kernels for a CPU"):
        choose("auto", "auto", "apex", CPU)
