"""Sample text: `python -m megatron_lite.generate CHECKPOINT --prompt "..."`, where CHECKPOINT is a step_N or a run."""

import argparse
import sys

from megatron_lite.checkpoint import open_checkpoint
from megatron_lite.device import local_device
from megatron_lite.errors import UsageError, run_command
from megatron_lite.inference.model import load_model
from megatron_lite.inference.sampling import Sampling
from megatron_lite.inference.text import complete, find_tokenizer
from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.place import find_place


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m megatron_lite.generate", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a step_N directory, or a run directory (its newest)")
    parser.add_argument("--prompt", required=True, help='what to continue; "" begins a document')
    parser.add_argument(
        "--max-new-tokens", type=int, default=100, help="fewer at a document's end or the trained length (default: 100)"
    )
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the most likely token (default: 0.8)")
    parser.add_argument("--top-k", type=int, help="draw from the K most likely tokens")
    parser.add_argument("--top-p", type=float, help="draw from the fewest tokens that have probability P together")
    parser.add_argument("--min-p", type=float, help="draw from tokens with this share of the likeliest's probability")
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="above 1 against what was written already"
    )
    parser.add_argument("--presence-penalty", type=float, default=0.0, help="subtracted once from logits of new tokens")
    parser.add_argument("--frequency-penalty", type=float, default=0.0, help="subtracted for each time they were drawn")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before it; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32", "float64"), help="to compute in; default: what it was trained in"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: what the node has")
    parser.add_argument("--tokenizer", metavar="PATH", help="default: the one of the run's configuration")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    place = find_place()
    if place.world_size > 1:
        raise UsageError(f"generate was started on {place.world_size} processes: it runs on one, without torchrun")
    sampling = Sampling(
        arguments.temperature, arguments.top_k, arguments.top_p, arguments.min_p, arguments.repetition_penalty,
        arguments.presence_penalty, arguments.frequency_penalty,
    )  # fmt: skip
    mesh = build_mesh(MeshShape(), local_device(arguments.device, place)[0])
    checkpoint = open_checkpoint(arguments.checkpoint, mesh)
    tokenizer = find_tokenizer(checkpoint, arguments.tokenizer)
    model = load_model(checkpoint, mesh, arguments.dtype)
    limits = arguments.max_new_tokens, arguments.seed, arguments.stop
    text = complete(model, tokenizer, arguments.prompt, sampling, *limits)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    run_command(main)
