import numpy as np
import pytest
from support.checkpoints import (
    assert_same,
    load_and_save,
    owned,
    resume_and_train,
    train,
    train_and_save,
    whole,
)
from support.layouts import Layout, build_trainer, distance

WIDE = {"tensor": 2, "pipeline": 2, "data": 2, "layers": 5, "stage_layers": (3, 2)}
LONG = {"pipeline": 4, "layers": 5, "stage_layers": (1, 2, 1, 1)}


@pytest.mark.parametrize(
    ("tied", "zero_stage", "dtype"),
    [(True, 3, "float64"), (False, 2, "float64"), (False, 1, "bfloat16"), (True, 0, "float32")],
)
def test_every_tensor_survives_any_change_of_layout_to_the_bit(ranks, tmp_path, tied, zero_stage, dtype):
    common = {"tied": tied, "dtype": dtype}
    wide = Layout(**WIDE, **common, zero_stage=zero_stage)
    results = ranks.run(train_and_save, 8, wide, tmp_path / "wide", range(1, 2))
    truth = whole([blocks for _, blocks in results])
    assert all(np.abs(t).max() > 0 for tensors in truth.values() for t in tensors.values())

    long = ranks.run(load_and_save, 4, Layout(**LONG, **common, zero_stage=3), tmp_path / "wide", tmp_path / "long")
    assert_same(whole(long), truth)
    one = load_and_save(Layout(layers=5, **common), tmp_path / "long", tmp_path / "one")
    assert_same(whole([one]), truth)
    again = ranks.run(load_and_save, 8, wide, tmp_path / "one", tmp_path / "again")
    assert_same(whole(again), truth)


def test_same_layout_resumes_to_the_same_bits(ranks, tmp_path):
    layout = Layout(tensor=2, data=2, dtype="bfloat16", tied=True)
    straight = ranks.run(train_and_save, 4, layout, tmp_path / "straight", range(1, 5))
    ranks.run(train_and_save, 4, layout, tmp_path / "stopped", range(1, 3))
    resumed = ranks.run(resume_and_train, 4, layout, tmp_path / "stopped", range(3, 5))
    for (losses, _), (tail, _) in zip(straight, resumed, strict=True):
        assert losses[2:] == tail
    assert_same(whole([blocks for _, blocks in resumed]), whole([blocks for _, blocks in straight]))


def test_other_layouts_resume_to_the_same_losses(ranks, tmp_path):
    straight = build_trainer(Layout(layers=5))
    truth = train(straight, range(1, 6))
    losses = ranks.run(train_and_save, 8, Layout(**WIDE), tmp_path, range(1, 3))[0][0]
    losses += ranks.run(resume_and_train, 4, Layout(**LONG), tmp_path, range(3, 5))[0][0]
    tail, blocks = resume_and_train(Layout(layers=5), tmp_path, range(5, 6))
    np.testing.assert_allclose(losses + tail, truth, rtol=1e-10, atol=0)
    ours, theirs = whole([blocks])["master"], whole([owned(straight)])["master"]
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert distance(ours[name], theirs[name]) <= 1e-10, name
