"""Kernels run in Triton's interpreter here, made right for bfloat16."""

import pytest
import torch
from megatron_lite.kernels.interpreter import make_exact


@pytest.fixture(autouse=True, scope="session")
def exact_interpreter():
    make_exact()


@pytest.fixture
def poisoned_memory():
    """New tensors are full of NaN, or of the largest integer."""
    torch.use_deterministic_algorithms(True)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(False)
