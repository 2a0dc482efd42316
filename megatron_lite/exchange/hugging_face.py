"""A Hugging Face directory as a source, and one that is written."""

import json
from pathlib import Path

from megatron_lite.errors import DataError
from megatron_lite.exchange.architectures import config_json, model_from
from megatron_lite.exchange.json_files import read_json, write_json
from megatron_lite.exchange.source import CARRIED, Source, Stored, common_dtype, fitting
from megatron_lite.exchange.tensor_files import in_files, open_metadata, open_tensors, write_tensors
from megatron_lite.files import sync

CONFIG = "config.json"
SINGLE, SHARDS = "model.safetensors", "model.safetensors.index.json"
KIND = "Hugging Face directory"
MERGED = "merged"  # in files' metadata: which adapter is in the weights, as JSON
ANGLES = ".rotary_emb.inv_freq"  # old files hold them, though they follow from rope_theta


def open_hugging_face(path: Path) -> Source:
    """Raises DataError for a model that is not ours, and for files that are not whole or do not fit it."""
    model, facts = model_from(read_json(path / CONFIG), str(path / CONFIG))
    found = _tensors(path)
    angles = [name for name in found if name.endswith(ANGLES)]
    parameters = fitting(path, model, {name: stored for name, stored in found.items() if name not in angles})
    dtype = common_dtype(stored.dtype for stored in parameters.values())
    carried = {name: (path / name).read_bytes() for name in CARRIED if (path / name).is_file()}
    left_out = ("rotary angles, which follow from rope_theta",) if angles else ()
    merged = json.loads(_metadata(path).get(MERGED, "{}"))
    return Source(path, KIND, model, facts, dtype, parameters, carried, left_out, merged=merged)


def write_hugging_face(directory: Path, source: Source, most: int) -> int:
    """The source's model into an empty directory, at most `most` bytes a file; returns how many files of tensors."""
    files = in_files(source.parameters, most)
    names = [SINGLE] if len(files) == 1 else [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in _from_1(files)]
    metadata = {"format": "pt", **({MERGED: json.dumps(dict(source.merged))} if source.merged else {})}
    for name, tensors in zip(names, files, strict=True):
        write_tensors(directory / name, tensors, metadata)
    if len(files) > 1:
        total = sum(stored.bytes for stored in source.parameters.values())
        where = {one: name for name, tensors in zip(names, files, strict=True) for one in tensors}
        write_json(directory / SHARDS, {"metadata": {"total_size": total}, "weight_map": where})
    carried = dict(source.carried)
    if "generation_config.json" not in carried and source.facts.tokens:
        write_json(directory / "generation_config.json", {"_from_model_config": True, **source.facts.tokens})
    for name, content in carried.items():
        (directory / name).write_bytes(content)
        sync(directory / name)
    write_json(directory / CONFIG, config_json(source.model, source.facts, source.dtype))
    return len(files)


def _tensors(path: Path) -> dict[str, Stored]:
    """All tensors of one file, or of the files that an index lists, each from where the index says it is."""
    if (path / SINGLE).is_file():
        return open_tensors(path / SINGLE)
    if not (path / SHARDS).is_file():
        pickled = sorted(p.name for p in path.glob("*.bin"))
        what = f"; {pickled[0]} is a pickle, which is not read" if pickled else ""
        raise DataError(f"{path} has neither {SINGLE} nor {SHARDS}{what}")
    where = read_json(path / SHARDS).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise DataError(f"{path / SHARDS} has no weight_map, which says the file of each tensor")
    found: dict[str, Stored] = {}
    for name in sorted(set(where.values())):
        if Path(name).name != name or not (path / name).is_file():
            raise DataError(f"{path / name} is missing, though {SHARDS} lists it")
        inside = open_tensors(path / name)
        listed = {tensor for tensor, file in where.items() if file == name}
        if odd := sorted(listed ^ inside.keys()):
            there = "lists it" if odd[0] in listed else "does not list it there"
            holds = "has no" if odd[0] in listed else "has the"
            raise DataError(f"{path / name} {holds} tensor {odd[0]}, though {SHARDS} {there}")
        found |= inside
    return found


def _metadata(path: Path) -> dict[str, str]:
    """Of the file, or of the first of several."""
    files = [path / SINGLE] if (path / SINGLE).is_file() else sorted(path.glob("model-*.safetensors"))
    return open_metadata(files[0]) if files else {}


def _from_1(files: list[dict[str, Stored]]) -> range:
    return range(1, len(files) + 1)
