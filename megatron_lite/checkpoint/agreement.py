"""All ranks leave a part of a save or load together: all well, or all with the same error. None waits in vain."""

from collections.abc import Iterator
from contextlib import contextmanager

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
    for rank, text in enumerate(mesh.words.exchange(problem, site)):
        if text:
            raise DataError(text if mesh.world.size == 1 else f"{text} (rank {rank})") from cause
