"""All ranks leave a part of a save or load together: all well, or all with the same error. None waits in vain."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from megatron_lite.errors import DataError
from megatron_lite.mesh import Mesh


@contextmanager
def together(mesh: Mesh, site: str) -> Iterator[None]:
    """Run the body, wait for every rank's; where a file or its content was wrong on any, all raise its DataError."""
    problem, cause = "", None
    try:
        yield
    except (OSError, SafetensorError, DataError) as error:
        problem, cause = str(error) or repr(error), error
    for rank, text in enumerate(exchange(mesh, problem, site)):
        if text:
            raise DataError(text if mesh.world.size == 1 else f"{text} (rank {rank})") from cause


def exchange(mesh: Mesh, text: str, site: str) -> list[str]:
    """Every rank's text, in rank order; also a barrier."""
    data = torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8)
    length = torch.tensor([len(data)], device=mesh.device)
    lengths = mesh.world.all_gather(length, f"{site}.length").wait().tolist()
    padded = torch.zeros((1, max(lengths)), dtype=torch.uint8)
    padded[0, : len(data)] = data
    texts = mesh.world.all_gather(padded.to(mesh.device), f"{site}.text").wait().cpu()
    return [row.numpy().tobytes().rstrip(b"\0").decode() for row in texts]
