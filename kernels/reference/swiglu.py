"""SwiGLU in plain PyTorch; kernels/swiglu.py says what it computes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def swiglu_backward(gradient: Tensor, gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    result = gate_up.new_empty(gate_up.shape)
    to_gate, to_up = result.chunk(2, -1)
    torch.ops.aten.silu.out(gate, out=to_up).mul_(gradient)
    torch.mul(gradient, up, out=to_gate)
    torch.ops.aten.silu_backward.grad_input(to_gate, gate, grad_input=to_gate)
    return result
