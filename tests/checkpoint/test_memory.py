"""Loading for inference takes the weights' own memory and hardly more."""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from megatron_lite.kernels.choice import kernels_of, optimizer_kernels_of
from support.checkpoints import mesh_of
from support.layouts import Layout, reshaped

from megatron_lite.checkpoint import load_weights, open_checkpoint, save
from megatron_lite.checkpoint.fill import SLICE
from megatron_lite.config import Config, resolve
from megatron_lite.model.build import build_stage, choice_of
from megatron_lite.model.freezing import NOTHING
from megatron_lite.optim.adamw import AdamW, AdamWSettings

SIZES = {
    "a billion": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 15, "vocab_size": 32000},
    "60 million": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 7, "vocab_size": 32000},
}
MOST = 1.05  # times the compute copy's bytes


def config_of(size: str, dtype: str) -> Config:
    config = Layout(dtype=dtype).config()
    return reshaped(config, **SIZES[size])


def inference_stage(config: Config):
    """As inference builds it: nothing is trained, and no weight has a value yet."""
    kernels = kernels_of(choice_of(config, "cpu"))
    mesh = mesh_of(Layout())
    return build_stage(config, resolve(config, 1), mesh, kernels, NOTHING), mesh


def write(size: str, directory: Path, dtype: str) -> int:
    """A checkpoint of frozen weights, each unit's of its number; returns how many parameters."""
    config = config_of(size, dtype)
    stage, mesh = inference_stage(config)
    for number, shards in enumerate(stage.shards):
        shards.values.fill_(number + 1)
    optimizer = AdamW((), AdamWSettings(), optimizer_kernels_of(choice_of(config, "cpu")))
    save(directory, SimpleNamespace(config=config, mesh=mesh, stage=stage, optimizer=optimizer, average=None), 1, 12)
    return sum(shards.values.numel() for shards in stage.shards)


class Watch(threading.Thread):
    """The most memory that the process has of its own, beside files, looked at each millisecond."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.peak = anonymous()
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.is_set():
            self.peak = max(self.peak, anonymous())
            time.sleep(0.001)

    def taken(self) -> int:
        self.ended.set()
        self.join()
        return max(self.peak, anonymous()) - self.before


def field_of(name: str) -> int:
    """Bytes, of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def anonymous() -> int:
    return field_of("RssAnon")


def load_and_say(size: str, directory: str) -> None:
    """Run by the test below in a process of its own: bytes of the compute copy, and what loading it took."""
    inference_stage(Layout(layers=1, dtype="bfloat16").config())  # what code takes is taken now
    mesh = mesh_of(Layout())
    checkpoint = open_checkpoint(directory, mesh)
    config = config_of(size, "bfloat16")
    Path("/proc/self/clear_refs").write_text("5")  # the peak of all resident memory, files too, begins anew
    resident, watch, begin = field_of("VmRSS"), Watch(), time.perf_counter()
    watch.start()
    stage, mesh = inference_stage(config)
    load_weights(checkpoint, config.model, stage, mesh)
    for shards in stage.shards:
        shards.wait_gather()
    seconds = time.perf_counter() - begin
    size_of_copy = sum(shards.compute.nbytes for shards in stage.shards)
    right = all((shards.values[:1000] == number + 1).all().item() for number, shards in enumerate(stage.shards))
    taken = {"own": watch.taken(), "resident": field_of("VmHWM") - resident}
    print(json.dumps({"copy": size_of_copy, "taken": taken, "seconds": seconds, "right": right}))


def measured(size: str, directory: Path) -> dict:
    tests = Path(__file__).parents[1]
    code = (
        f"import sys; sys.path[:0] = {[str(tests), str(tests / 'checkpoint')]}; import test_memory; "
        f"test_memory.load_and_say({size!r}, {str(directory)!r})"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=500)
    return json.loads(ended.stdout)


def test_loading_for_inference_takes_the_compute_copys_bytes(tmp_path):
    assert write("60 million", tmp_path, "float32") > 5e7
    check(measured("60 million", tmp_path))


@pytest.mark.nightly
def test_loading_a_billion_parameters_for_inference_takes_the_compute_copys_bytes(tmp_path):
    assert write("a billion", tmp_path, "bfloat16") > 1e9
    check(measured("a billion", tmp_path))
    shutil.rmtree(tmp_path / "step_1")


def check(found: dict) -> None:
    assert found["right"]
    assert found["taken"]["own"] <= MOST * found["copy"], found
    assert found["taken"]["resident"] <= MOST * found["copy"] + SLICE, found
