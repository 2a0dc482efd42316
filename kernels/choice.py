"""Which implementation of each operation a run uses: decided once, handed down as data.

backend    torch     plain PyTorch: what a CPU uses
           triton    our kernels; on a CPU only in Triton's interpreter, for proofs
           auto      triton on a GPU that has Triton, torch elsewhere
attention  auto        the backend's own
           sdpa        PyTorch's
           triton      ours
           flash_attn  the flash-attn package's, which has not run with this code yet
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

BACKENDS = ("auto", "torch", "triton")
ATTENTIONS = ("auto", "sdpa", "triton", "flash_attn")
OPTIMIZERS = ("auto", "torch", "triton", "apex")

# Which file holds an operation, under kernels/ and under kernels/reference/.
FILES = {
    "rms_norm": "rms_norm",
    "add_rms_norm": "rms_norm",
    "rms_norm_backward": "rms_norm",
    "add_partials_": "rms_norm",
    "swiglu": "swiglu",
    "swiglu_backward": "swiglu",
    "rope_": "rope",
    "attention": "attention",
    "attention_backward": "attention",
    "attention_backward_": "attention",
    "cross_entropy_statistics": "cross_entropy",
    "cross_entropy_gradient_": "cross_entropy",
    "embedding_backward_": "embedding",
    "add_product_": "weight_gradient",
}


@dataclass(frozen=True)
class Kernels:
    """The operations of the model; each is described where it is defined, under its own name."""

    rms_norm: Callable
    add_rms_norm: Callable
    rms_norm_backward: Callable
    add_partials_: Callable
    swiglu: Callable
    swiglu_backward: Callable
    rope_: Callable
    attention: Callable
    attention_backward: Callable
    attention_backward_: Callable
    cross_entropy_statistics: Callable
    cross_entropy_gradient_: Callable
    embedding_backward_: Callable
    add_product_: Callable


@dataclass(frozen=True)
class Choice:
    """The backends of the model's operations, of attention and of the optimizer, and why: a line for the log."""

    backend: str
    attention: str
    optimizer: str
    why: str

    def __str__(self) -> str:
        return f"kernels: {self.backend}, attention {self.attention}, optimizer {self.optimizer} ({self.why})"


def choose(backend: str, attention: str, optimizer: str, device: str) -> Choice:
    """What the keys mean for a device type. Raises ValueError for what cannot run there."""
    for key, value, known in (
        ("kernels.backend", backend, BACKENDS),
        ("kernels.attention", attention, ATTENTIONS),
        ("optim.backend", optimizer, OPTIMIZERS),
    ):
        if value not in known:
            raise ValueError(f"{key} = {value}: must be one of {', '.join(known)}")
    chosen, why = _backend(backend, device)
    own = "triton" if chosen == "triton" else "sdpa"
    # PyTorch's fused update, until the optimizer takes ours.
    update = "torch" if optimizer == "auto" else optimizer
    choice = Choice(chosen, own if attention == "auto" else attention, update, why)
    if "triton" in (choice.backend, choice.attention, choice.optimizer):
        _require_triton(device)
    return choice


def _backend(backend: str, device: str) -> tuple[str, str]:
    if backend != "auto":
        return backend, "kernels.backend asks for it"
    if device == "cpu":
        return "torch", "auto, on a CPU"
    if find_spec("triton") is None:
        return "torch", f"auto, on {device} without the package triton"
    return "triton", f"auto, on {device}"


def _require_triton(device: str) -> None:
    if find_spec("triton") is None:
        raise ValueError("the Triton backend needs the package triton: install it, or set kernels.backend = torch")
    if device == "cpu" and not import_module("megatron_lite.kernels.interpreter").interpreting():
        raise ValueError(
            "the Triton backend on a CPU runs in Triton's interpreter alone: set TRITON_INTERPRET=1 (slow, for "
            "proofs), or kernels.backend = torch"
        )


def kernels_of(choice: Choice) -> Kernels:
    """The operations themselves. Importing Triton's waits until they are chosen: a CPU may have no Triton."""
    if choice.backend == "triton" or choice.attention == "triton":
        interpreter = import_module("megatron_lite.kernels.interpreter")
        if interpreter.interpreting():
            interpreter.make_exact()
    homes = {"torch": "reference.", "triton": "", "sdpa": "reference.", "flash_attn": "adapters."}
    found = {}
    for name, file in FILES.items():
        attends = file == "attention"
        home = homes[choice.attention if attends else choice.backend]
        file = "flash_attn" if attends and choice.attention == "flash_attn" else file
        found[name] = getattr(import_module(f"megatron_lite.kernels.{home}{file}"), name)
    return Kernels(**found)
