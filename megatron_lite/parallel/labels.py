"""Names for what a step does, in the trace of a profiler that runs (training/profile.py)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.autograd.profiler import record_function

_NOTHING = nullcontext()


def label(*words: Any) -> AbstractContextManager:
    """Names what happens inside: a range in torch.profiler's trace and, where the process uses a GPU, one of NVTX.

    While no profiler runs, all that it costs is to ask whether one does.
    """
    return _range(" ".join(map(str, words))) if torch.autograd._profiler_enabled() else _NOTHING


@contextmanager
def _range(name: str) -> Iterator[None]:
    # torch.profiler does not see NVTX and Nsight Systems sees nothing else.
    with record_function(name), torch.cuda.nvtx.range(name) if torch.cuda.is_initialized() else _NOTHING:
        yield
