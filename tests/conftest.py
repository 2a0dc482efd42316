import pytest
from support.ranks import Ranks


@pytest.fixture(scope="session")
def ranks():
    """Gloo processes shared by all tests of the session."""
    pool = Ranks()
    yield pool
    pool.stop()
