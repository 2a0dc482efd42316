"""The sections of the day, most valuable first."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """`seconds` is the most that its process may take; `finds` and `decides` are for the reader of the page."""

    name: str
    seconds: int
    finds: str
    decides: str = ""


FACTS = Section(
    "facts",
    40,
    "Versions, the GPU's own figures, the kernels that would be chosen, and what a copy reaches.",
    "A copy has to reach 83 % of the published bandwidth, read and written; less means a shared or capped GPU.",
)

ONE_GPU = (
    FACTS,
    Section(
        "stage",
        120,
        "Three ranks of the 65B model on 512 GPUs as they are, but for messages, which are local copies of the same "
        "size: times, the host's own time, memory against its closed form, and the kernels of a step.",
        "Memory within 2 % of the plan; the host under a quarter of the GPU's time; under 10.5 ms a layer and "
        "microbatch, forward and backward, or the estimate of a step is wrong and the table of kernels says where.",
    ),
    Section(
        "kernels",
        120,
        "Every case of the tests on this device against float64, twice, with strides, in memory full of NaN.",
        "No error above what the tests allow in the interpreter; the same bits twice and whatever the strides.",
    ),
    Section(
        "attention",
        90,
        "Attention beside PyTorch's two backends, and with other tiles.",
        "The launch table's entries, and whether cuDNN's attention is worth an adapter.",
    ),
    Section(
        "products",
        70,
        "Products of matrices at the stage's shapes; weight gradients added in float32; products while some "
        "multiprocessors are held; which of two kernels begins that one event releases.",
        "Weight gradients within 1e-5 of float64; priorities and blocks of NCCL's kernels.",
    ),
    Section(
        "training",
        90,
        "A small model, 20 steps, in three dtypes on every backend, against a CPU in float64; again; with less kept.",
        "Losses and norms within 1e-11, 2e-6 and 3e-2 of the CPU's; the same bits again; at most one wait of the host "
        "for the GPU in a step.",
    ),
    Section(
        "nccl",
        40,
        "Every call that the package makes, on NCCL in a world of one, in five dtypes; the memory of communicators.",
        "All calls answer and change nothing.",
    ),
    Section(
        "ranks",
        80,
        "Tensor 2 x pipeline 2 x data 2 as eight processes on this device, messages through the CPU.",
        "Losses and norms within 1e-5 of one process in float32.",
    ),
    Section(
        "speed",
        70,
        "Memory-bound kernels as shares of the copy, beside plain PyTorch and torch.compile.",
        "85 % of the copy; what is below is to be looked at.",
    ),
)

TWO_GPUS = (
    FACTS,
    Section(
        "connect",
        90,
        "Four layouts from nothing: mesh, groups and channels, the first step and the second, on real messages.",
        "Each layout gets through its first step; one that does not has the deadlock of first uses.",
    ),
    Section(
        "layouts",
        120,
        "Pipeline 2, tensor 2, data 2 and context 2, a few steps each, against one process on a CPU.",
        "Losses and norms within 1e-10 of it in float64, 1e-5 in float32.",
    ),
    Section(
        "overlap",
        70,
        "A product beside a gather issued first, and beside a receive that waits, by the options of the group.",
        "How much of a collective hides at either priority; what a waiting receive costs by its number of blocks.",
    ),
    Section("communicators", 40, "Memory that each communicator takes at its first use."),
)

PATIENCE_WITH_TOYS = 4  # times as long: a CPU that others use too

PLANS = {1: ONE_GPU, 2: TWO_GPUS}
LIMITS = {1: 570.0, 2: 300.0}  # seconds for all of it
