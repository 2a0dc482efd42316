"""Which implementation of each operation a run uses: decided once, handed down as data.

backend    torch     plain PyTorch: what a CPU uses
           triton    our kernels; on a CPU only in Triton's interpreter, for proofs
           auto      triton on a GPU that has Triton, torch elsewhere
attention  auto        the backend's own; PyTorch's where ours has no tile for the work
           sdpa        PyTorch's
           triton      ours
           flash_attn  the flash-attn package's
optimizer  auto    the backend's own
           torch   PyTorch's
           triton  ours
           apex    NVIDIA's apex's update; the norm is the backend's

What auto takes has at least been proved in Triton's interpreter. The flash-attn adapter and apex's update have not
run with their packages anywhere, so auto leaves them alone even where those are installed. Weight gradients are apex's
where that is installed, the backend is triton and operands are bfloat16.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from megatron_lite.kernels.adapters import apex, flash_attn
from megatron_lite.kernels.checks import WIDEST_HEAD

BACKENDS = ("auto", "torch", "triton")
ATTENTIONS = ("auto", "flash_attn", "triton", "sdpa")
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
    "entropy_statistics": "entropy",
    "entropy_gradient_": "entropy",
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
    entropy_statistics: Callable
    entropy_gradient_: Callable
    embedding_backward_: Callable
    add_product_: Callable


@dataclass(frozen=True)
class OptimizerKernels:
    """The operations of the optimizer. `table_of` makes, once, what `square_norm` finds its shards by."""

    adamw_: Callable
    square_norm: Callable
    table_of: Callable


@dataclass(frozen=True)
class Work:
    """What the kernels will work on: a device type, a dtype by torch's name, heads of so many elements; and whether a
    ring of ranks attends within documents.
    """

    device: str
    dtype: str
    head_dim: int
    documents_in_ring: bool = False


@dataclass(frozen=True)
class Choice:
    """The backends of the model's operations, of attention, of weight gradients and of the optimizer, and why: a line
    for the log.
    """

    backend: str
    attention: str
    product: str
    optimizer: str
    why: str

    def __str__(self) -> str:
        return (
            f"kernels: {self.backend}, attention {self.attention}, weight gradients {self.product}, "
            f"optimizer {self.optimizer} ({self.why})"
        )


def choose(backend: str, attention: str, optimizer: str, work: Work) -> Choice:
    """What the keys mean for the work. Raises ValueError for what cannot do it."""
    for key, value, known in (
        ("kernels.backend", backend, BACKENDS),
        ("kernels.attention", attention, ATTENTIONS),
        ("optim.backend", optimizer, OPTIMIZERS),
    ):
        if value not in known:
            raise ValueError(f"{key} = {value}: must be one of {', '.join(known)}")
    chosen, why = _backend(backend, work.device)
    own, misfit = "triton" if chosen == "triton" else "sdpa", _misfit(work)
    if own == "triton" and attention == "auto" and misfit:
        own, why = "sdpa", f"{why}; triton's attention takes no {misfit}"
    update = chosen if optimizer == "auto" else optimizer
    choice = Choice(chosen, own if attention == "auto" else attention, _product(chosen, work), update, why)
    for key, value in (
        ("kernels.backend", choice.backend),
        ("kernels.attention", choice.attention),
        ("optim.backend", choice.optimizer),
    ):
        if value == "triton":
            _require_triton(key, work.device)
    if choice.attention == "triton" and misfit:
        raise ValueError(f"kernels.attention = triton takes no {misfit}; set kernels.attention = auto")
    if choice.attention == "flash_attn":
        _require_flash_attn(work)
    if choice.optimizer == "apex":
        _require_apex(work)
    return choice


def _backend(backend: str, device: str) -> tuple[str, str]:
    if backend != "auto":
        return backend, "kernels.backend asks for it"
    if device == "cpu":
        return "torch", "auto, on a CPU"
    if find_spec("triton") is None:
        return "torch", f"auto, on {device} without the package triton"
    return "triton", f"auto, on {device}"


def _misfit(work: Work) -> str:
    """For what of the work our attention has no tile; empty where it has. Its tables are of bfloat16: in float32 a
    GPU's tensor cores do not multiply exactly, and without them tiles fit neither registers nor shared memory.
    """
    if work.head_dim > WIDEST_HEAD:
        return f"heads of {work.head_dim} elements: at most {WIDEST_HEAD}"
    if work.device != "cpu" and work.dtype != "bfloat16":
        return f"train.dtype = {work.dtype} on a GPU: bfloat16 alone"
    return ""


def _product(backend: str, work: Work) -> str:
    takes_apex = backend == "triton" and work.device != "cpu" and work.dtype == "bfloat16"
    return "apex" if takes_apex and apex.installed(apex.PRODUCT) else backend


def _require_triton(key: str, device: str) -> None:
    if find_spec("triton") is None:
        raise ValueError(f"{key} = triton needs the package triton: install it, or set {key} = auto")
    if device == "cpu" and not import_module("megatron_lite.kernels.interpreter").interpreting():
        raise ValueError(
            f"{key} = triton on a CPU runs in Triton's interpreter alone: set TRITON_INTERPRET=1 (slow, for proofs), "
            f"or {key} = auto"
        )


def _require_flash_attn(work: Work) -> None:
    asked, instead = "kernels.attention = flash_attn", "set kernels.attention = auto"
    _require_package(asked, flash_attn.installed(), "flash-attn", " and ".join(flash_attn.SECOND), work.device)
    if work.dtype != "bfloat16":
        raise ValueError(f"{asked} with train.dtype = {work.dtype}: must be bfloat16; or {instead}")
    if not flash_attn.fits(work.head_dim):
        raise ValueError(
            f"{asked} with heads of {work.head_dim} elements: must be a multiple of 8 up to {flash_attn.WIDEST}; or "
            f"{instead}"
        )
    if work.documents_in_ring:
        raise ValueError(
            f"{asked} with data.document_mask in a ring of parallel.context: flash-attn knows whole documents alone; "
            f"set parallel.context_kind = ulysses, or {instead}"
        )


def _require_apex(work: Work) -> None:
    asked = "optim.backend = apex"
    _require_package(asked, apex.installed(), "apex", apex.OPTIMIZER, work.device)
    if work.dtype == "float64":
        raise ValueError(f"{asked} with train.dtype = float64: apex updates float32 alone; set optim.backend = auto")


def _require_package(asked: str, installed: bool, package: str, modules: str, device: str) -> None:
    key = asked.split(" ")[0]
    if device == "cpu":
        raise ValueError(f"{asked}: {package} has no kernels for a CPU; set {key} = auto")
    if not installed:
        raise ValueError(f"{asked}: {package} is not installed here (no {modules}); install it, or set {key} = auto")


def kernels_of(choice: Choice) -> Kernels:
    """The operations themselves. Importing Triton's waits until they are chosen: a CPU may have no Triton."""
    found = {}
    for name, file in FILES.items():
        chosen = {"attention": choice.attention, "weight_gradient": choice.product}.get(file, choice.backend)
        found[name] = getattr(_module(chosen, file), name)
    return Kernels(**found)


def optimizer_kernels_of(choice: Choice) -> OptimizerKernels:
    """The optimizer's operations themselves; what only generates needs none."""
    update = _module(choice.optimizer, "adamw")
    norm = _module(choice.backend if choice.optimizer == "apex" else choice.optimizer, "square_norm")
    return OptimizerKernels(update.adamw_, norm.square_norm, norm.table_of)


def _module(chosen: str, file: str) -> ModuleType:
    """Where an implementation of the operations of a file is."""
    if chosen == "triton":
        interpreter = import_module("megatron_lite.kernels.interpreter")
        if interpreter.interpreting():
            interpreter.make_exact()
    homes = {"torch": "reference.", "triton": "", "sdpa": "reference.", "flash_attn": "adapters.", "apex": "adapters."}
    file = chosen if homes[chosen] == "adapters." else file  # an adapter is named after its package
    return import_module(f"megatron_lite.kernels.{homes[chosen]}{file}")
