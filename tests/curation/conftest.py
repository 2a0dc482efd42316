import os
from pathlib import Path

import pytest

from megatron_lite.curation.engine.ray_tasks import RayTasks


@pytest.fixture(scope="session")
def ray_tasks():
    """Ray on two CPUs of this machine, shared by all tests of the session: starting it takes seconds."""
    # Ray's workers inherit the environment, not the search path that pytest has set up.
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    with RayTasks(2, None) as engine:
        yield engine
    del os.environ["PYTHONPATH"]
