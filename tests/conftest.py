import os

import pytest
import torch

os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it where a kernel is defined; ranks inherit it

from support.ranks import Ranks


@pytest.fixture(scope="session")
def ranks():
    """Gloo processes shared by all tests of a process."""
    pool = Ranks()
    yield pool
    pool.stop()


@pytest.fixture
def poisoned_memory():
    """New tensors are full of NaN, or of the largest integer."""
    torch.use_deterministic_algorithms(True)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(False)
