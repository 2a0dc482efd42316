"""Modules that stand in for packages that cannot be installed here: their recorded signatures, and what a test puts
behind those. A call that the real function would not take is a TypeError here too.
"""

import json
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from inspect import Parameter, Signature
from pathlib import Path
from types import ModuleType

import torch
from megatron_lite.kernels.reference import adamw

SIGNATURES = Path(__file__).parents[2] / "kernels" / "signatures"


def recorded(file: str) -> list[dict]:
    """Entries of tests/kernels/signatures: package, version, source, module, functions and their parameters."""
    return json.loads((SIGNATURES / f"{file}.json").read_text())


def signature_of(parameters: str, by_position: bool) -> Signature:
    """Of names divided by spaces; those that end in = may be left out."""
    kind = Parameter.POSITIONAL_ONLY if by_position else Parameter.POSITIONAL_OR_KEYWORD
    return Signature(
        Parameter(word.rstrip("="), kind, default=None if word.endswith("=") else Parameter.empty)
        for word in parameters.split()
    )


def stand_in(monkeypatch, entry: dict, behind: Mapping[str, Callable]) -> None:
    """Put a module with the entry's functions where it would be imported; `behind` gets their arguments by name."""
    *parents, _ = entry["module"].split(".")
    for name in (*parents, entry["module"]):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    for name, parameters in entry["functions"].items():
        signature = signature_of(parameters, by_position="by position" in entry["source"])
        setattr(module, name, _bound(signature, behind[name]))


def _bound(signature: Signature, function: Callable) -> Callable:
    def call(*arguments, **named):
        return function(**signature.bind(*arguments, **named).arguments)

    return call


def stand_in_for_apex_adam(monkeypatch) -> None:
    """apex's optimizer, which computes what ours does, as its signatures have it."""
    [entry] = [entry for entry in recorded("apex") if entry["module"] == "amp_C"]
    stand_in(monkeypatch, entry, dict.fromkeys(entry["functions"], _multi_tensor_adam))


def _multi_tensor_adam(chunk_size, noop_flag, tensor_lists, lr, beta1, beta2, epsilon, step, mode, bias_correction,
                       weight_decay, inv_scale=None):  # fmt: skip
    """What csrc/multi_tensor_adam.cu computes of lists of gradients, parameters and moments, by our reference."""
    assert chunk_size > 0 and mode == bias_correction == 1
    assert noop_flag.dtype == torch.int32 and not noop_flag.any()
    [gradient], [master], [first], [second] = tensor_lists
    if inv_scale is not None:
        assert lr.dtype == inv_scale.dtype == torch.float32 and step.dtype == torch.int32
        gradient.mul_(inv_scale)
        lr, step = float(lr), int(step)
    betas = (beta1, beta2)
    adamw.adamw_(master, gradient, first, second, None, None, len(master), step, lr, betas, epsilon, weight_decay)
