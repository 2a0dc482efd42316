"""Runs on several data sets: named losses, weights by tokens, fill-in-the-middle, Megatron's order, bad input."""

import json

import numpy as np
import pytest
from support.runs import metrics_of, numbers_of, run_pretrain, start_pretrain, tensors_of, tree_of, write_tokens
from support.text import random_texts, train_small_tokenizer, write_dataset

from megatron_lite.data import cache
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.errors import DataError, UsageError

VOCABULARY = 400


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Two data sets of text to train on, two of random tokens to validate on."""
    directory = tmp_path_factory.mktemp("data")
    tokenizer = SentencePieceTokenizer(train_small_tokenizer(directory, VOCABULARY))
    for i, name in enumerate(("prose", "code")):
        documents = [[[*tokenizer.encode(text), tokenizer.eod_id]] for text in random_texts(i, 40)]
        write_dataset(directory / name, documents, tokenizer=tokenizer.identity)
    for i, name in enumerate(("valid", "other")):
        write_tokens(directory / name, 300 * (i + 1), seed=i)
    return directory


def tree(run_dir, data_dir, **changes):
    settings = {
        "model__vocab_size": VOCABULARY,
        "train__dtype": "float32",
        "data__tokenizer": str(data_dir / "small.model"),
        "data__document_mask": True,
        "data__reset_positions": True,
        "data__train": [
            {"prefix": str(data_dir / "prose"), "weight": 1.0},
            {"prefix": str(data_dir / "code"), "weight": 0.0, "fim": {"rate": 0.7}},
        ],
        "data__schedule": [{"from_tokens": 5 * 8 * 16 + 1, "weights": [0.3, 0.7]}],
        "data__valid": [
            {"prefix": str(data_dir / "valid"), "weight": 3},
            {"prefix": str(data_dir / "other"), "name": "o"},
        ],
    }
    return tree_of(run_dir, data_dir, **(settings | changes))


def test_a_run_stopped_before_its_weights_change_goes_on_to_the_bit(tmp_path, data_dir):
    """Stopped at step 4; the weights change at the second sample of step 6, to a data set with its middles moved."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_pretrain(tree(whole, data_dir), 1)
    run_pretrain(tree(stopped, data_dir, train__steps=4, optim__decay_steps=12), 1)
    run_pretrain(tree(stopped, data_dir), 1)
    assert len(numbers_of(whole)) == 12
    assert numbers_of(stopped)[4:] == numbers_of(whole)[4:]
    last = "checkpoints/step_12"
    assert tensors_of(stopped / last) == tensors_of(whole / last)


def test_each_validation_set_has_its_loss_beside_the_mean_by_weight(tmp_path, data_dir):
    run_pretrain(tree(tmp_path / "run", data_dir, train__steps=4), 1)
    (line,) = [line for line in metrics_of(tmp_path / "run") if "valid_loss" in line]
    assert {name for name in line if name.startswith("valid_loss/")} == {"valid_loss/valid", "valid_loss/o"}
    assert line["valid_loss"] == (3 * line["valid_loss/valid"] + line["valid_loss/o"]) / 4
    for i, (name, key) in enumerate((("valid", "valid"), ("other", "o"))):
        alone = tree(tmp_path / name, data_dir, train__steps=4, data__valid=[{"prefix": str(data_dir / name)}])
        run_pretrain(alone, 1)
        last = metrics_of(tmp_path / name)[-1]
        assert last["valid_loss"] == last[f"valid_loss/{name}"] == line[f"valid_loss/{key}"], i
    assert line["valid_loss/valid"] != line["valid_loss/o"]


def test_the_time_that_a_step_waits_for_its_samples_is_part_of_it(tmp_path, data_dir):
    run_pretrain(tree(tmp_path / "run", data_dir, train__steps=3), 1)
    lines = metrics_of(tmp_path / "run")
    assert all(0 < line["data_seconds"] < line["seconds"] for line in lines)


def test_a_run_in_megatrons_order_goes_on_unless_its_length_changed(tmp_path, data_dir, monkeypatch):
    monkeypatch.setattr(cache, "WORTH_KEEPING", 1)
    changes = {"data__order": "megatron", "data__schedule": [], "data__train": [{"prefix": str(data_dir / "prose")}]}
    changes |= {"train__steps": 8, "train__valid_every": None, "optim__decay_steps": 12}
    run_pretrain(tree(tmp_path / "whole", data_dir, **changes), 1)
    run_pretrain(tree(tmp_path / "stable", data_dir, **{**changes, "data__order": "stable"}), 1)
    assert numbers_of(tmp_path / "whole") != numbers_of(tmp_path / "stable")
    assert len(list((tmp_path / "whole" / "cache").glob("megatron_shuffle-*"))) == 3  # training, two to validate on

    (tmp_path / "whole" / "checkpoints" / "step_8").rename(tmp_path / "step_8")
    again = tree(tmp_path / "whole", data_dir, **changes)
    before = numbers_of(tmp_path / "whole")
    run_pretrain(again, 1)
    assert numbers_of(tmp_path / "whole") == before
    assert tensors_of(tmp_path / "whole" / "checkpoints" / "step_8") == tensors_of(tmp_path / "step_8")
    with pytest.raises(UsageError, match="is of a run of 64 samples, this run takes 80, which are ordered anew"):
        run_pretrain(tree(tmp_path / "whole", data_dir, **{**changes, "train__steps": 10}), 1)


def cut_bin(prefix):
    raw = prefix.with_suffix(".bin").read_bytes()
    prefix.with_suffix(".bin").write_bytes(raw[:-6])


def overwrite_idx(offset, value, dtype):
    def damage(prefix):
        raw = bytearray(prefix.with_suffix(".idx").read_bytes())
        raw[offset : offset + dtype().itemsize] = np.array([value], dtype).tobytes()
        prefix.with_suffix(".idx").write_bytes(raw)

    return damage


# Ten sequences of 50 tokens: lengths from byte 34 on, pointers from 74 on.
DAMAGES = {
    "describes 1000 bytes, the .bin file has 994|does not lie in the 994 bytes": cut_bin,
    "sequence 3 of 50 tokens at byte 5000 does not lie in the 1000 bytes": overwrite_idx(74 + 24, 5000, np.int64),
    "token type 9 is none of 1 uint8": overwrite_idx(17, 9, np.uint8),
    "sequence 2 has length -2147483640; one of more than 2147483647 tokens does not fit": overwrite_idx(
        34 + 8, -(2**31) + 8, np.int32
    ),
    "is no index of Megatron's": overwrite_idx(0, 0, np.uint8),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_a_damaged_data_set_is_refused_in_one_line(tmp_path, words):
    write_tokens(tmp_path / "train", 500)
    (tmp_path / "train.json").unlink()
    DAMAGES[words](tmp_path / "train")
    with pytest.raises(DataError, match=words) as error:
        run_pretrain(tree_of(tmp_path / "run", tmp_path, data__valid=[]), 1)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 3


def test_a_user_sees_that_line_and_exit_code_3(tmp_path):
    write_tokens(tmp_path / "train", 500)
    cut_bin(tmp_path / "train")
    process = start_pretrain(tree_of(tmp_path / "run", tmp_path, data__valid=[]), 1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 3, output
    assert "Traceback" not in output
    assert "train.json says bin_bytes 1000, the data set has 994" in output.strip().splitlines()[-1]
    assert json.loads((tmp_path / "run" / "exit.json").read_text(encoding="utf-8"))["code"] == 3
