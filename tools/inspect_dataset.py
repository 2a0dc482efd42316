"""Say what is in a data set (PREFIX.bin and .idx): counts, lengths, samples of its text, and whether it is sound.

Opening checks that the index is whole and describes the bytes of the .bin file. --verify reads everything: checksums
and counts against the sidecar (.json), every sequence behind the one before it, every token id within the vocabulary.
Exit code 3 where a fault is found.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_lite.data.indexed import IndexedDataset, open_indexed
from megatron_lite.data.inspection import Statistics, choose_documents, faults, read_document, statistics
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError, run_command

BAR = 40  # characters of the longest bar
SHOWN = 400  # characters of a sample


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", metavar="PREFIX", help="path without .bin and .idx")
    parser.add_argument("--verify", action="store_true", help="read everything and check it")
    parser.add_argument("--samples", type=int, default=0, metavar="N", help="show N documents, chosen by --seed")
    parser.add_argument("--seed", type=int, default=1234, help="of the samples (1234)")
    parser.add_argument(
        "--tokenizer-model", metavar="T", help="file, directory or run; decodes the samples; must be the data set's own"
    )
    parser.add_argument("--json", nargs="?", const="-", metavar="F", help="all of it as JSON, in F or instead of text")
    arguments = parser.parse_args()
    if arguments.samples < 0:
        parser.error(f"--samples {arguments.samples} is below 0")
    if arguments.samples and not arguments.tokenizer_model:
        parser.error("--samples needs --tokenizer-model to decode them with")
    return arguments


def matching_tokenizer(path: str, dataset: IndexedDataset) -> Tokenizer:
    """Raises DataError where the data set was written by another one."""
    if Path(path).is_dir():
        from megatron_lite.checkpoint.directory import tokenizer_directory  # which brings torch

        path = str(tokenizer_directory(Path(path)))
    tokenizer = open_tokenizer(path)
    known = dataset.sidecar and dataset.sidecar.tokenizer
    if known and known != tokenizer.identity:
        raise DataError(
            f"{dataset.prefix} was written by the tokenizer with sha256 {known.sha256[:16]}..., "
            f"{path} has {tokenizer.sha256[:16]}..."
        )
    return tokenizer


def inspect(arguments: argparse.Namespace) -> dict[str, Any]:
    dataset = open_indexed(arguments.prefix)
    found: dict[str, Any] = {
        "prefix": arguments.prefix,
        "statistics": asdict(statistics(dataset)),
        "sidecar": asdict(dataset.sidecar) if dataset.sidecar else None,
    }
    if arguments.verify:
        found["faults"] = list(faults(dataset))
    if arguments.tokenizer_model:
        tokenizer = matching_tokenizer(arguments.tokenizer_model, dataset)
        chosen = choose_documents(dataset, arguments.samples, arguments.seed)
        found["samples"] = [read_document(dataset, tokenizer, index) for index in chosen]
    return found


def show(found: dict[str, Any]) -> None:
    counts = Statistics(**found["statistics"])
    sidecar = found["sidecar"]
    tokenizer = sidecar["tokenizer"] if sidecar else None
    rows = {
        "documents": f"{counts.documents:,}, {counts.empty_documents:,} of them empty",
        "sequences": f"{counts.sequences:,}",
        "tokens": f"{counts.tokens:,} {counts.dtype}, {counts.bin_bytes:,} bytes",
        "document": f"{counts.shortest:,} to {counts.longest:,} tokens, {counts.mean:,.1f} on average",
        "bytes a token": "not known" if counts.bytes_per_token is None else f"{counts.bytes_per_token:.3f}",
        "tokenizer": f"{tokenizer['vocab_size']:,} pieces, sha256 {tokenizer['sha256'][:16]}..., end of document "
        f"{tokenizer['eod_id']}"
        if tokenizer
        else "not known",
    }
    for name, value in rows.items():
        print(f"{name:<14}{value}")
    print("\ntokens          documents")
    shortest = next((power for power, count in enumerate(counts.histogram) if count), 0)
    for power, count in list(enumerate(counts.histogram))[shortest:]:
        below = f"below {2**power:,}" if power else "none"
        print(f"{below:<16}{count:>12,} {'#' * -(-BAR * count // max(counts.histogram))}")
    for sample in found.get("samples", ()):
        text, more = sample["text"][:SHOWN], max(len(sample["text"]) - SHOWN, 0)
        print(f"\ndocument {sample['document']}, {sum(sample['sequences'])} tokens:")
        print(text + (f"... ({more} characters more)" if more else ""))
    if "faults" in found:
        print("\n" + ("\n".join(found["faults"]) if found["faults"] else "verified: no fault found"))


def main() -> None:
    arguments = parse_arguments()
    found = inspect(arguments)
    if arguments.json:
        text = json.dumps(found, ensure_ascii=False, indent=2)
        if arguments.json == "-":
            print(text)
        else:
            Path(arguments.json).write_text(text + "\n", encoding="utf-8")
    if arguments.json != "-":
        show(found)
    if found.get("faults"):
        print(f"error: {arguments.prefix}: {len(found['faults'])} faults: {found['faults'][0]}", file=sys.stderr)
        sys.exit(DataError.exit_code)


if __name__ == "__main__":
    run_command(main)
