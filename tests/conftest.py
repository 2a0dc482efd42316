import os

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it where a kernel is defined; ranks inherit it

from support.ranks import Ranks


@pytest.fixture(scope="session")
def ranks():
    """Gloo processes shared by all tests of the session."""
    pool = Ranks()
    yield pool
    pool.stop()
