"""Runs after pretraining: the same numbers on any layout, the same bits after a resume, and what they leave behind."""

import json

import pytest
from support.aligning import run_align, tree_of, write_rows
from support.runs import metrics_of, tensors_of

from megatron_lite.alignment import run

ALGORITHMS = ("sft", "reward", "dpo")
ALL = {"parallel__tensor": 2, "parallel__pipeline": 2}
NAMED = {
    "sft": set(),
    "reward": {"accuracy", "margin", "score", "score_square"},
    "dpo": {"accuracy", "margin", "chosen_logprob", "rejected_logprob", "nll"},
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


def numbers(run_dir, names):
    return [[line[name] for name in ("loss", "grad_norm", "tokens", *sorted(names))] for line in metrics_of(run_dir)]


@pytest.fixture(scope="module")
def single(data_dir):
    """Run directories of one process, by algorithm."""
    found = {}
    for algorithm in ALGORITHMS:
        found[algorithm] = data_dir / f"single_{algorithm}"
        run_align(algorithm, tree_of(algorithm, found[algorithm], data_dir), 1)
    return found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_eight_ranks_take_the_steps_of_one_process(ranks, data_dir, single, algorithm):
    run_dir = data_dir / f"eight_{algorithm}"
    ranks.run(run_align, 8, algorithm, tree_of(algorithm, run_dir, data_dir, **ALL), 8)
    names = NAMED[algorithm]
    both = [numbers(one, names - {"accuracy"}) for one in (run_dir, single[algorithm])]
    for ours, theirs in zip(*both, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)
    # Before DPO's first update policy and reference differ by rounding alone, which then decides who is ahead.
    begin = 1 if algorithm == "dpo" else 0
    if "accuracy" in names:
        ahead = [[line["accuracy"] for line in metrics_of(one)[begin:]] for one in (run_dir, single[algorithm])]
        assert ahead[0] == pytest.approx(ahead[1])
    valid = [{f"valid_{name}" for name in ("loss", *names)} <= set(line) for line in metrics_of(run_dir)]
    assert valid == [False, False, True, False, False, True]
    last, alone = metrics_of(run_dir)[-1], metrics_of(single[algorithm])[-1]
    for name in ("loss", *names):
        assert last[f"valid_{name}"] == pytest.approx(alone[f"valid_{name}"], rel=1e-9)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_that_stopped_within_an_epoch_goes_on_to_the_bit(data_dir, single, algorithm):
    run_dir = data_dir / f"stopped_{algorithm}"
    for steps in (3, 6):
        decay = {"optim__decay_steps": 6, "train__steps": steps}
        run_align(algorithm, tree_of(algorithm, run_dir, data_dir, **decay), 1)
    ours, theirs = (tensors_of(one / "checkpoints" / "step_6") for one in (run_dir, single[algorithm]))
    assert ours == theirs
    assert numbers(run_dir, NAMED[algorithm]) == numbers(single[algorithm], NAMED[algorithm])


def test_a_run_that_goes_on_finds_its_references_without_a_model_of_them(data_dir, single, monkeypatch):
    def never(*arguments):
        raise AssertionError("the reference was made again")

    monkeypatch.setattr(run, "reference_model", never)
    tree = tree_of("dpo", single["dpo"], data_dir, train__steps=7, optim__decay_steps=7)
    run_align("dpo", tree, 1)
    assert len(metrics_of(single["dpo"])) == 7


def test_epochs_stand_for_steps(data_dir):
    run_dir = data_dir / "epochs"
    changes = {"data__epochs": 2, "train__steps": None, "data__packing": False, "checkpoint__every": None}
    run_align("sft", tree_of("sft", run_dir, data_dir, **changes), 1)
    (trained, _) = json.loads((run_dir / "rows.json").read_text())["sets"]
    assert len(metrics_of(run_dir)) == -(-2 * trained["samples"] // 4)
    assert metrics_of(run_dir)[-1]["lr"] == pytest.approx(0.001)  # the schedule ends with them


def test_what_became_of_rows_stands_in_the_run_directory(data_dir, single):
    trained, held_out = json.loads((single["sft"] / "rows.json").read_text())["sets"]
    assert (trained["use"], held_out["use"]) == ("training", "validation")
    assert trained["name"] == "dialogues_train"
    assert trained["rows"] == trained["samples"] == 20
    assert 0 < trained["trained_tokens"] < trained["tokens"]
    assert 0 <= trained["waste"] < 1
    assert trained["packed_rows"] < 20


def test_a_reward_model_keeps_by_which_its_scores_are_normalized(data_dir, single):
    tree = json.loads((single["reward"] / "checkpoints" / "step_6" / "index.json").read_text())["checkpoint"]
    last = metrics_of(single["reward"])[-1]
    scale, mean = tree["extra"]["reward_scale"], last["valid_score"]
    assert scale["mean"] == mean
    assert scale["deviation"] == pytest.approx((last["valid_score_square"] - mean**2) ** 0.5)
