"""Other people's kernels for the same work, at the same shapes and as their own launchers start them.

Compiled from the installed package where there is one. gate.json keeps what they cost, so that the gate needs none of
them.
"""
# ruff: noqa: C408 - arguments read as in a call

from importlib import import_module
from importlib.util import find_spec

import triton
import triton.language as tl
from megatron_lite.kernels.benchmarks.machine_code import Loop
from megatron_lite.kernels.benchmarks.ours import TENSOR_8, TOKENS
from megatron_lite.kernels.benchmarks.specimen import Launched, Specimen
from megatron_lite.kernels.launch import Launch
from triton.runtime.jit import JITFunction

ROWS, HIDDEN, FEED_FORWARD, WORDS = TENSOR_8.rows, TENSOR_8.hidden, TENSOR_8.columns, TENSOR_8.words
HEADS, GROUPS, HEAD = TENSOR_8.heads, TENSOR_8.groups, TENSOR_8.head
MULTIPROCESSORS = 132  # of an H100: Liger starts one program on each
TURNS = triton.cdiv(ROWS, MULTIPROCESSORS)


def specimens() -> list[Specimen]:
    """Those of the packages that are installed."""
    found = []
    if find_spec("liger_kernel"):
        found += [*_liger_norm(), *_liger_add_norm(), *_liger_swiglu(), *_liger_rope(), *_liger_cross_entropy()]
    if find_spec("flash_attn"):
        found += [*_flash_norm(), *_flash_cross_entropy(), *_flash_rotary()]
    return found


def _peer(
    name: str, kernel, warps: int, arguments: dict, elements: int, stages: int = 3, **loops: Loop | tuple[Loop, ...]
) -> Specimen:
    """`elements` are one program's."""
    while not isinstance(kernel, JITFunction):
        kernel = kernel.fn  # under an autotuner or heuristics
    absent = dict.fromkeys(kernel.arg_names)
    options = Launch(warps, stages, fusion=True).options
    return Specimen(name, "sm_90", Launched(kernel, absent | arguments, options, 1), elements, loops)


def _liger_norm() -> list[Specimen]:
    liger = import_module("liger_kernel.ops.rms_norm")
    usual = dict(X_ptr="*bf16", W_ptr="*bf16", RSTD_ptr="*fp32", X_row_stride=HIDDEN, W_row_stride=1, RSTD_row_stride=1,
                 n_cols=HIDDEN, offset=0.0, casting_mode=0, elementwise_affine=True, BLOCK_SIZE=HIDDEN)  # fmt: skip
    forward = usual | dict(Y_ptr="*bf16", Y_row_stride=HIDDEN, eps=1e-5)
    backward = usual | dict(
        dY_ptr="*bf16", dX_ptr="*bf16", dW_ptr="*fp32", dY_row_stride=HIDDEN, dX_row_stride=HIDDEN,
        dW_row_stride=HIDDEN, X_dtype=tl.bfloat16, n_rows=ROWS, rows_per_program=TURNS, COMPUTE_DW=True,
    )  # fmt: skip
    return [
        _peer("rms_norm of Liger", liger._rms_norm_forward_kernel, 16, forward, HIDDEN),
        _peer("rms_norm_backward of Liger", liger._rms_norm_backward_kernel, 16, backward, TURNS * HIDDEN,
              row_idx=Loop(TURNS)),
    ]  # fmt: skip


def _liger_add_norm() -> list[Specimen]:
    liger = import_module("liger_kernel.ops.fused_add_rms_norm")
    usual = dict(X_ptr="*bf16", W_ptr="*bf16", RSTD_ptr="*fp32", X_row_stride=HIDDEN, W_row_stride=1, RSTD_row_stride=1,
                 n_cols=HIDDEN, offset=0.0, casting_mode=0, BLOCK_SIZE=HIDDEN)  # fmt: skip
    forward = usual | dict(Y_ptr="*bf16", S_ptr="*bf16", R_ptr="*bf16", Y_row_stride=HIDDEN, S_row_stride=HIDDEN,
                           R_row_stride=HIDDEN, eps=1e-5)  # fmt: skip
    backward = usual | dict(
        dY_ptr="*bf16", dS_out_ptr="*bf16", dX_ptr="*bf16", dW_ptr="*fp32", dY_row_stride=HIDDEN,
        dS_out_row_stride=HIDDEN, dX_row_stride=HIDDEN, dW_row_stride=HIDDEN, X_dtype=tl.bfloat16, n_rows=ROWS,
        rows_per_program=TURNS, has_dS_out=True, COMPUTE_DW=True,
    )  # fmt: skip
    return [
        _peer("add_rms_norm of Liger", liger._fused_add_rms_norm_forward_kernel, 16, forward, HIDDEN, stages=2),
        _peer("add_rms_norm_backward of Liger", liger._fused_add_rms_norm_backward_kernel, 16, backward,
              TURNS * HIDDEN, stages=2, row_idx=Loop(TURNS)),
    ]  # fmt: skip


def _liger_swiglu() -> list[Specimen]:
    liger = import_module("liger_kernel.ops.swiglu")
    usual = dict(y_ptr="*bf16", in_stride=2 * FEED_FORWARD, out_stride=FEED_FORWARD, ffn_size=FEED_FORWARD,
                 BLOCK_SIZE=triton.next_power_of_2(FEED_FORWARD))  # fmt: skip
    forward = usual | dict(c_ptr="*bf16")
    backward = usual | dict(dc_ptr="*bf16", dy_ptr="*bf16")
    return [
        _peer("swiglu of Liger", liger._swiglu_fused_gate_up_forward_kernel, 8, forward, FEED_FORWARD),
        _peer("swiglu_backward of Liger", liger._swiglu_fused_gate_up_backward_kernel, 8, backward, FEED_FORWARD),
    ]


def _liger_rope() -> list[Specimen]:
    liger = import_module("liger_kernel.ops.rope")
    arguments = dict(
        q_ptr="*bf16", k_ptr="*bf16", cos="*fp32", sin="*fp32", q_row_stride=HEADS * HEAD, k_row_stride=GROUPS * HEAD,
        cos_row_stride=HEAD, sin_row_stride=HEAD, sl=TOKENS, bs=1, cos_bs=1, n_qh=HEADS, n_kh=GROUPS, hd=HEAD,
        pad_n_qh=HEADS, pad_n_kh=GROUPS, pad_hd=HEAD, pad_rd=HEAD, rd=HEAD, BLOCK_SIZE=HEADS, BACKWARD_PASS=False,
    )  # fmt: skip
    return [_peer("rope_ of Liger", liger._triton_rope, 4, arguments, (HEADS + GROUPS) * HEAD)]


def _liger_cross_entropy() -> list[Specimen]:
    liger = import_module("liger_kernel.ops.vocab_parallel_cross_entropy")
    usual = dict(EXP_ptr="*fp32", EXP_stride=WORDS, Y_ptr="*i64", sum_exp_ptr="*fp32", vocab_start=WORDS, n_cols=WORDS,
                 ignore_index=-100, BLOCK_SIZE=triton.next_power_of_2(WORDS))  # fmt: skip
    forward = usual | dict(X_ptr="*bf16", X_stride=WORDS, logits_max_ptr="*fp32", pred_ptr="*fp32")
    backward = usual | dict(grad_out_ptr="*fp32", alpha_eff=0.0, eps_eff=0.0, HAS_LABEL_SMOOTHING=False)
    kernels = liger.liger_vocab_parallel_ce_forward_kernel, liger.liger_vocab_parallel_ce_backward_kernel
    return [
        _peer("cross_entropy_statistics of Liger", kernels[0], 32, forward, WORDS, i=Loop(1)),
        # Its first loop is for rows that are ignored.
        _peer("cross_entropy_gradient_ of Liger", kernels[1], 32, backward, WORDS, i=(Loop(0), Loop(1))),
    ]


def _flash_norm() -> list[Specimen]:
    flash = import_module("flash_attn.ops.triton.layer_norm")
    strides = dict.fromkeys(
        "stride_x_row stride_y_row stride_res_row stride_res_out_row stride_dy_row stride_dx_row stride_dres_row "
        "stride_dres_in_row".split(),
        HIDDEN,
    )
    others = dict.fromkeys("stride_x1_row stride_y1_row stride_dy1_row stride_dx1_row".split(), 0)
    off = dict.fromkeys(
        "zero_centered_weight HAS_BIAS HAS_DROPOUT STORE_DROPOUT_MASK HAS_ROWSCALE HAS_X1 HAS_W1 HAS_B1 HAS_DY1 "
        "HAS_DX1 RECOMPUTE_OUTPUT".split(),
        False,
    )
    usual = strides | others | off | dict(X="*bf16", W="*bf16", Rstd="*fp32", M=ROWS, N=HIDDEN, eps=1e-5,
                                          dropout_p=0.0, IS_RMS_NORM=True, BLOCK_N=HIDDEN)  # fmt: skip
    forward = dict(Y="*bf16", RESIDUAL="*bf16", RESIDUAL_OUT="*bf16", HAS_RESIDUAL=True, STORE_RESIDUAL_OUT=True)
    backward = dict(DY="*bf16", DX="*bf16", DW="*fp32", DRESIDUAL="*bf16", HAS_DRESIDUAL=True, STORE_DRESIDUAL=False,
                    rows_per_program=TURNS)  # fmt: skip
    return [
        _peer("add_rms_norm of flash-attn", flash._layer_norm_fwd_1pass_kernel, 16, usual | forward, HIDDEN),
        _peer("add_rms_norm_backward of flash-attn", flash._layer_norm_bwd_kernel, 16, usual | backward,
              TURNS * HIDDEN, row=Loop(TURNS)),
    ]  # fmt: skip


def _flash_cross_entropy() -> list[Specimen]:
    flash = import_module("flash_attn.ops.triton.cross_entropy")
    usual = dict(lse_ptr="*fp32", logits_ptr="*bf16", labels_ptr="*i64", smoothing=0.0, logit_scale=1.0,
                 lse_square_scale=0.0, ignore_index=-100, total_classes=8 * WORDS, class_start_idx=WORDS, n_cols=WORDS,
                 logits_row_stride=WORDS, HAS_SMOOTHING=False)  # fmt: skip
    forward = usual | dict(loss_ptr="*fp32", z_loss_ptr="*fp32", BLOCK_SIZE=16_384, SPLIT=True, PRECOMPUTED_LSE=False)
    backward = usual | dict(dlogits_ptr="*bf16", dloss_ptr="*fp32", dlogits_row_stride=WORDS, dloss_row_stride=1,
                            BLOCK_SIZE=4096)  # fmt: skip
    return [
        _peer("cross_entropy_statistics of flash-attn", flash.cross_entropy_fwd_kernel, 16, forward, WORDS,
              col_offset=Loop(1)),
        # Four programs share a row.
        _peer("cross_entropy_gradient_ of flash-attn", flash.cross_entropy_bwd_kernel, 8, backward, WORDS // 4),
    ]  # fmt: skip


def _flash_rotary() -> list[Specimen]:
    flash = import_module("flash_attn.ops.triton.rotary")
    sizes = dict(stride_out_batch=TOKENS * HEADS * HEAD, stride_out_seqlen=HEADS * HEAD, stride_out_nheads=HEAD,
                 stride_out_headdim=1, stride_x_batch=TOKENS * HEADS * HEAD, stride_x_seqlen=HEADS * HEAD,
                 stride_x_nheads=HEAD, stride_x_headdim=1)  # fmt: skip
    arguments = sizes | dict(
        OUT="*bf16", X="*bf16", COS="*fp32", SIN="*fp32", SEQLEN_OFFSETS=0, seqlen=TOKENS, nheads=HEADS,
        seqlen_ro=TOKENS, ROTARY_DIM=HEAD, IS_SEQLEN_OFFSETS_TENSOR=False, IS_VARLEN=False, INTERLEAVED=False,
        CONJUGATE=False, BLOCK_H=2, BLOCK_M=8,
    )  # fmt: skip
    return [_peer("rope_ of flash-attn", flash.rotary_kernel, 4, arguments, 2 * 8 * HEAD)]
