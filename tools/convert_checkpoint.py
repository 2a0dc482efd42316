"""Convert a model: a Hugging Face directory or a GGUF file to a checkpoint of ours, or a checkpoint to Hugging Face's.
An adapter goes to Hugging Face merged into its base, and for itself to PEFT's directory and back.

    python tools/convert_checkpoint.py SmolLM2.gguf smollm2 --to ours
    python tools/convert_checkpoint.py runs/mine hf --to hf --verify some.txt
    python tools/convert_checkpoint.py runs/mine averaged --to ours --ema --dtype bfloat16
    python tools/convert_checkpoint.py runs/adapter merged --to hf
    python tools/convert_checkpoint.py runs/adapter peft --to peft

SOURCE is recognized by its content; a run means its newest whole checkpoint. TARGET appears when it is whole. One
tensor at a time is in memory, however large the model. docs/exchange.md says what is carried, and what is refused.
"""

import argparse
from pathlib import Path

import torch

from megatron_lite.errors import UsageError, run_command
from megatron_lite.exchange.convert import KINDS, LARGEST, convert
from megatron_lite.exchange.origin import open_origin
from megatron_lite.exchange.ours import KIND as OURS
from megatron_lite.exchange.peft import KIND as PEFT
from megatron_lite.exchange.rounding import DTYPES
from megatron_lite.exchange.source import Source
from megatron_lite.exchange.verify import Logits, Transformers, compare, in_batches, library
from megatron_lite.inference.opening import load_model
from megatron_lite.mesh import mesh_of_one


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", metavar="SOURCE", type=Path, help="a Hugging Face or PEFT directory, a GGUF file, a checkpoint"
    )
    parser.add_argument("target", metavar="TARGET", type=Path, help="a new directory")
    parser.add_argument("--to", choices=sorted(KINDS), required=True, help="what TARGET becomes")
    parser.add_argument(
        "--weights-only", action="store_true", help="weights and shape, and no file that goes with them"
    )
    parser.add_argument("--ema", action="store_true", help="a checkpoint's average of the weights in their place")
    parser.add_argument("--merge", action="store_true", help="with --to ours: an adapter and its base as one model")
    parser.add_argument("--base", metavar="PATH", type=Path, help="what an adapter stands on; default: where it was")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights in TARGET; default: as they are")
    parser.add_argument("--verify", metavar="TEXT.txt", type=Path, help="compare logits on this text with transformers")
    parser.add_argument("--max-shard-bytes", type=int, default=LARGEST, metavar="N", help=f"of a file ({LARGEST:,})")
    arguments = parser.parse_args()
    if arguments.verify is not None and arguments.merge and arguments.to == "ours":
        parser.error("--verify: transformers opens no checkpoint of ours; what is merged is compared with --to hf")
    if arguments.max_shard_bytes < 1:
        parser.error(f"--max-shard-bytes {arguments.max_shard_bytes} is below 1")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    said: list[str] = []
    check = None
    if arguments.verify is not None:
        text = _text(arguments.verify)
        library()  # before anything is written

        def check(source: Source, written: Path) -> None:
            said.append(verify(source, written, KINDS[arguments.to], text, arguments.dtype, arguments.ema))

    done = convert(
        arguments.source,
        arguments.target,
        arguments.to,
        weights_only=arguments.weights_only,
        average=arguments.ema,
        merge=arguments.merge,
        base=arguments.base,
        dtype=arguments.dtype,
        most=arguments.max_shard_bytes,
        check=check,
    )
    source = done.source
    files = "1 file" if done.files == 1 else f"{done.files} files"
    print(f"{source.kind} {source.path} -> {done.kind} {arguments.target}: {source.size:,} parameters in {files}")
    print(f"left out: {'; '.join(done.left_out) or 'nothing'}")
    for line in (done.merged, done.rounded):
        if line is not None:
            print(line)
    for line in said:
        print(line)


def verify(source: Source, written: Path, kind: str, text: str, dtype: str | None = None, average: bool = False) -> str:
    """Raises DataError where what was written gives other logits than the source does, in the `dtype` that it was
    rounded to, and where it is an `average`.
    """
    ours: Logits
    if source.adapter is not None:
        theirs, ours = _with_adapter(source, written, kind)
    elif source.merged or source.kind == OURS:
        theirs = Transformers(written)
        ours = logits_of(source if source.merged or average or dtype else source.path)
    else:
        theirs = Transformers(source.path, DTYPES.get(dtype or ""))
        ours = logits_of(written) if kind == OURS else Transformers(written)
    ids, of = theirs.encode(text, source.model.vocab_size)
    return f"verified: {compare(ours, theirs, in_batches(ids, source.facts.context))} ({of})"


def _with_adapter(source: Source, written: Path, kind: str) -> tuple[Transformers, Logits]:
    """Of an adapter for itself, in PEFT on its base, and here."""
    assert source.adapter is not None
    directory = written if kind == PEFT else source.path
    if not isinstance(source.adapter.base, Source) or PEFT not in (kind, source.kind):
        raise UsageError(f"--verify: PEFT opens neither {source.path} nor what it stands on; convert it with --to peft")
    theirs = Transformers(source.adapter.base.path, adapter=directory)
    return theirs, logits_of(source if kind == PEFT else written)


def logits_of(origin: Source | Path) -> Logits:
    """A source, or a checkpoint of ours, in the units that train and generate, in float32."""
    mesh = mesh_of_one(torch.device("cpu"))
    opened = open_origin(origin, mesh) if isinstance(origin, Path) else origin
    model = load_model(opened, mesh, dtype="float32")

    def logits(ids: torch.Tensor) -> torch.Tensor:
        found = model.logits(ids)
        assert found is not None  # one process has the model's end
        return found

    return logits


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--verify {path}: cannot be read as text: {error}") from None
    if not text:
        raise UsageError(f"--verify {path}: the text is empty")
    return text


if __name__ == "__main__":
    run_command(main)
