"""What the configuration accepts by name is what the code can do."""

from typing import get_args

from megatron_lite.kernels.choice import ATTENTIONS, BACKENDS, OPTIMIZERS

from megatron_lite.config.tree import ACCEPTED_TODAY
from megatron_lite.parallel.context import Kind
from megatron_lite.parallel.pipeline.schedules import SCHEDULES


def test_accepted_names_are_those_of_the_codes_tables():
    code = {
        "parallel.schedule": SCHEDULES,
        "parallel.context_kind": get_args(Kind),
        "kernels.backend": BACKENDS,
        "kernels.attention": ATTENTIONS,
        "optim.backend": OPTIMIZERS,
    }
    assert {key: set(ACCEPTED_TODAY[key]) for key in code} == {key: set(table) for key, table in code.items()}
    assert ACCEPTED_TODAY.keys() - code.keys() == {"data.order"}
