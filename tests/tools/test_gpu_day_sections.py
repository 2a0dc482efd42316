"""Parts of the GPU day's sections that a CPU can prove: what they would catch, and what they may ask of torch."""

import ast
import re
import subprocess
import sys
import time
import warnings
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu.findings import Findings, read
from gpu.judge import judge
from gpu.machine import Cpu, Gpu, median_ms
from gpu.processes import RankFailure, on_ranks
from gpu.sections import products, training
from gpu.sections.kernels import compare
from gpu.sections.stage import Timeline
from gpu.small import Small, alone, far, train
from support.kernels.harness import Case, random

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def case(kernel, **options) -> Case:
    """Twice a tensor, by a kernel that may be wrong."""
    return Case("twice", kernel, lambda x: (x * 2,), lambda size, dtype, g: (random(size, dtype, g),), [(4, 6)],
                lambda *_: None, **options)  # fmt: skip


def test_a_right_kernel_is_within_what_is_allowed_repeats_and_minds_strides():
    found = compare(case(lambda x: (x * 2,)), (4, 6), torch.bfloat16, CPU)
    assert found == {"worst_of_allowed": pytest.approx(0, abs=0.5), "repeats": True, "strides": True}


def test_an_error_above_the_allowed_one_is_seen():
    found = compare(case(lambda x: (x * 2.02,)), (4, 6), torch.float32, CPU)
    assert found["worst_of_allowed"] > 1000


def test_a_kernel_that_reads_what_nobody_wrote_is_seen():
    found = compare(case(lambda x: (x * 2 + torch.empty_like(x) * 0,)), (4, 6), torch.float32, CPU)
    assert found["worst_of_allowed"] == float("inf")


def test_a_kernel_that_does_not_repeat_is_seen():
    calls = []

    def drifts(x):
        calls.append(x)
        return (x * 2 + 1e-9 * len(calls),)

    assert compare(case(drifts), (4, 6), torch.float64, CPU)["repeats"] is False


def test_a_kernel_that_takes_all_memory_for_contiguous_is_seen():
    def blind(x):
        return (torch.as_strided(x, x.shape, (x.shape[1], 1)) * 2,)

    found = compare(case(blind), (4, 6), torch.float32, CPU)
    assert found["repeats"] is True and found["strides"] is False


def test_a_timeline_splits_a_phase_into_the_hosts_part_and_the_devices():
    class Slow(Cpu):
        """A device that is 20 ms behind the host."""

        def synchronize(self):
            time.sleep(0.02)

    timeline = Timeline(Slow())
    timeline.phase = "count"  # not watched, so not noted
    timeline.watching = True
    for name in ("count", "F0", "F1.2", "B0", "finish"):
        timeline.phase = name
        time.sleep(0.01)
    spent = timeline.spent()
    assert list(spent) == ["F of chunk 0", "F of chunk 2", "B of chunk 0"]
    for ((whole, host),) in spent.values():
        assert 10 <= host < whole and whole - host >= 20


def test_the_median_is_of_so_many_calls_after_three_warm_ones():
    calls = []
    assert median_ms(Cpu(), lambda: calls.append(1), repeats=5) >= 0
    assert len(calls) == 8


def test_memory_on_a_cpu_is_what_storages_hold():
    with Cpu().watch_memory() as memory:
        kept = torch.zeros(2**20, dtype=torch.uint8)
        torch.zeros(2**21, dtype=torch.uint8)
        assert memory.peak == 3 * 2**20
        memory.forget_peak()
        assert memory.peak == 2**20 == kept.nbytes


def answer(rank: int, base: int) -> int:
    if base < 0 and rank == 1:
        raise ValueError("planted")
    if base == 0 and rank == 1:
        time.sleep(60)
    return base + rank


@pytest.mark.nightly  # every rank imports torch
def test_ranks_answer_in_order_and_the_first_failure_or_silence_ends_them():
    assert on_ranks(answer, 2, "gloo", 5) == [5, 6]
    with pytest.raises(RankFailure, match=r"rank 1: (?s:.*)ValueError: planted"):
        on_ranks(answer, 2, "gloo", -1)
    with pytest.raises(RankFailure, match=r"no answer from ranks \[1\]"):
        on_ranks(answer, 2, "gloo", 0, seconds=30)


def test_another_seed_of_tokens_is_far_from_the_same_run():
    small = Small(preset="nano", steps=1, length=16, sequences=2, dtype="float64")
    found = train(alone(small, CPU), small)
    assert train(alone(small, CPU), small) == found
    shifted = Small(preset="nano", steps=1, length=16, sequences=2, dtype="float64", documents=True)
    assert 1e-6 < far(train(alone(shifted, CPU), shifted), found) < 1


def sources() -> dict[str, str]:
    return {path.name: path.read_text() for path in (ROOT / "tools" / "gpu").rglob("*.py")}


def test_torch_cuda_is_named_in_one_file_and_what_it_asks_for_exists():
    naming = {name for name, text in sources().items() if re.search(r"torch\.cuda\.|from torch\.cuda", text)}
    assert naming == {"machine.py"}
    nodes = ast.walk(ast.parse(sources()["machine.py"]))
    asked = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    names = {name for name in asked if re.match(r"torch\.(cuda|backends|autograd|utils)\.", name)}
    assert len(names) > 15
    for name in names:
        found = torch
        for part in name.split(".")[1:]:
            found = getattr(found, part)


class AsAGpu(Cpu):
    """A CPU that answers what only a GPU is asked, so that those lines run here too."""

    def stream(self, priority=0):
        return priority

    def on(self, stream):
        return nullcontext()

    def released_together(self, first, second, priority, hold):
        for call in (hold, first, second):
            call()
        return (2.0, 3.0) if priority == 0 else (1.0, 4.0)

    @contextmanager
    def waits_of_the_host(self):
        found = Counter()
        yield found
        found.update(["step.py:7", "step.py:7", "loop.py:1"])


def test_what_runs_beside_products_is_told_by_blocks_and_by_priority(tmp_path, monkeypatch):
    held = []

    def hold(programs, milliseconds, device):
        held.append(programs)
        return torch.arange(programs) // 2  # two blocks on each

    monkeypatch.setitem(sys.modules, "gpu.hold", SimpleNamespace(hold=hold))
    monkeypatch.setattr(products, "COPIED", 1024)
    findings = Findings(tmp_path, "products")
    products.beside_held(products.TOY[0], AsAGpu(), findings)
    products.who_begins(products.TOY[0], AsAGpu(), findings)
    found = read(tmp_path)
    beside = [one for one in found if one["what"] == "beside held multiprocessors"]
    assert [(one["blocks"], one["multiprocessors"]) for one in beside] == [(n, n // 2) for n in products.HELD]
    assert held[: len(products.HELD)] == [1, *products.HELD[1:]]  # once to compile it
    begins = [(one["priority"], one["copy_done_ms"], one["product_done_ms"]) for one in found[len(beside) :]]
    assert begins == [(0, 2.0, 3.0), (-1, 1.0, 4.0)]


def test_waits_of_the_host_in_the_second_step_are_counted_by_their_lines(tmp_path):
    training.say_waits(training.TOY, AsAGpu(), Findings(tmp_path, "training"))
    (found,) = read(tmp_path)
    assert found["count"] == 3 and found["places"] == ["step.py:7 x 2", "loop.py:1 x 1"]
    assert judge(found, toy=False).word == "fail"


def test_a_gpus_waits_are_the_warnings_of_its_synchronizing_calls(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with Gpu.waits_of_the_host(None) as waits:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert sorted(waits.values()) == [1, 1] and all(place.startswith("test_gpu_day_sections.py:") for place in waits)
    assert modes == ["warn", "default"]


@pytest.mark.nightly
def test_every_section_is_found_in_a_source_tree_and_asks_for_no_compiled_extension_and_few_packages():
    """As on the machine with the GPU: nothing of ours installed, so no finder of an editable install, nothing built."""
    program = """
import pathlib, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
sys.path[:0] = sys.argv[1:]
from importlib import import_module
for path in pathlib.Path(sys.argv[1], "tools/gpu/sections").glob("[a-z]*.py"):
    import_module(f"gpu.sections.{path.stem}")
import gpu.page
print(import_module("megatron_lite.kernels").__file__)
found = [name for name, module in sys.modules.items() if "site-packages" in str(getattr(module, "__file__", ""))]
print(*sorted({name.split(".")[0] for name in found}))
print(*[name for name in sys.modules if name.startswith("megatron_lite") and name.split(".")[-1].startswith("_")])
"""
    paths = [str(path) for path in (ROOT, ROOT / "tools", ROOT / "tests")]
    environment = {"PATH": "/usr/bin:/bin", "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *paths], env=environment, cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kernels, packages, extensions = done.stdout.split("\n")[:3]
    assert kernels == str(ROOT / "kernels" / "__init__.py")
    with_torch = {"torch", "torchgen", "numpy", "triton", "jinja2", "markupsafe", "yaml", "tqdm", "typing_extensions"}
    brought = {"pydantic", "pydantic_core", "annotated_types", "typing_inspection"}
    installer = {name for name in packages.split() if name.startswith(("_", "__"))}
    assert set(packages.split()) - installer <= with_torch | brought
    assert extensions == ""


@pytest.mark.nightly
def test_the_kernel_that_holds_multiprocessors_compiles_for_gpus_and_waits_in_a_loop():
    program = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gpu.hold import WARPS, hold_kernel
for capability in (80, 90, 100):
    source = ASTSource(hold_kernel, {"multiprocessors": "*i32", "nanoseconds": "i32"}, {})
    text = compile(source, GPUTarget("cuda", capability, 32), {"num_warps": WARPS}).asm["ptx"]
    print(text.count("%globaltimer;"), text.count("%smid;"), text.count(".maxntid 1024") or text.count(".reqntid 1024"))
"""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}", "HOME": "/tmp"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["2 1 1"] * 3, done.stderr
