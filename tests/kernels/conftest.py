"""Kernels run in Triton's interpreter here, made right for bfloat16."""

import pytest
from megatron_lite.kernels.interpreter import make_exact


@pytest.fixture(autouse=True, scope="session")
def exact_interpreter():
    make_exact()
