"""Whole runs with a growing batch, and with attention kept inside documents."""

from pathlib import Path

import pytest
from support.runs import metrics_of, numbers_of, run_pretrain, tree_of, write_tokens

from megatron_lite.errors import DataError

RAMP = {"start": 2, "increment": 2, "samples": 16}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    write_tokens(tmp_path / "train", 6000)
    write_tokens(tmp_path / "valid", 600, seed=1)
    return tmp_path


def test_a_ramped_run_is_the_same_on_any_layout_and_after_a_resume(ranks, data_dir):
    settings = {"train__batch_ramp": RAMP, "train__steps": 10, "optim__decay_steps": 10}
    one, two = data_dir / "one", data_dir / "two"
    run_pretrain(tree_of(one, data_dir, **settings), 1)
    ranks.run(run_pretrain, 2, tree_of(two, data_dir, **settings | {"train__steps": 4}), 2)
    ranks.run(run_pretrain, 2, tree_of(two, data_dir, parallel__pipeline=2, **settings), 2)

    # A step takes 2 sequences before sample 5 1/3, 4 before 10 2/3, 6 before 16, then 8; each of 16 tokens.
    sizes = [2, 2, 2, 4, 4, 6, 8, 8, 8, 8]
    assert [line["tokens"] for line in metrics_of(one)] == [16 * sum(sizes[: step + 1]) for step in range(10)]
    for expected, found in zip(numbers_of(one), numbers_of(two), strict=True):
        assert found[:2] == expected[:2]
        assert found[2:5] == pytest.approx(expected[2:5], rel=1e-10)


def test_documents_cannot_be_minded_where_their_end_is_unknown(data_dir):
    with pytest.raises(DataError, match=r"data\.document_mask = true needs to know the token that ends a document"):
        run_pretrain(tree_of(data_dir / "run", data_dir, data__document_mask=True), 1)


def test_compared_transcripts_change_nothing_in_a_good_run(ranks, data_dir):
    plain, checked = data_dir / "plain", data_dir / "checked"
    settings = {"parallel__tensor": 2, "parallel__pipeline": 2, "train__steps": 3}
    ranks.run(run_pretrain, 4, tree_of(plain, data_dir, **settings), 4)
    ranks.run(run_pretrain, 4, tree_of(checked, data_dir, train__check_transcripts=True, **settings), 4)
    assert numbers_of(checked) == numbers_of(plain)
