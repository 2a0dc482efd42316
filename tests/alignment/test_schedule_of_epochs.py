"""A schedule over the steps that epochs take: they are known once rows are counted, and then held to its keys."""

import pytest
from support.aligning import run_align, tree_of, write_rows
from support.runs import metrics_of

from megatron_lite.errors import UsageError

EPOCH = {"data__epochs": 1, "data__packing": False, "train__steps": None, "optim__schedule": "wsd"}  # 20 rows, 4 a step


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


def test_a_cooldown_ends_with_the_epoch(tmp_path, data_dir):
    changes = EPOCH | {"optim__cooldown_steps": 2, "optim__min_lr": 0.0, "checkpoint__every": None}
    run_align("sft", tree_of("sft", tmp_path / "run", data_dir, **changes), 1)
    assert [line["lr"] for line in metrics_of(tmp_path / "run")] == pytest.approx([0.005, 0.01, 0.01, 0.005, 0.0])


def test_a_cooldown_longer_than_the_epoch_leaves_room_for_is_refused_before_the_first_step(tmp_path, data_dir):
    tree = tree_of("sft", tmp_path / "run", data_dir, **EPOCH, optim__cooldown_steps=4)
    with pytest.raises(UsageError, match=r"optim\.cooldown_steps = 4: 4 steps must fit between .*decay_steps = 5"):
        run_align("sft", tree, 1)
    assert not (tmp_path / "run/metrics.jsonl").exists()
