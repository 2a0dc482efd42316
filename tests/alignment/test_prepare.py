"""From a file of rows to a store: the same whoever makes it, found again by content, whole or not there."""

import gzip
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from support.chat_templates import PLAIN, tokenizer_directory
from support.text import random_texts, train_byte_level

from megatron_lite.alignment import rows as rows_module
from megatron_lite.alignment.dialogues import Dialogue
from megatron_lite.alignment.masks import answer_masks
from megatron_lite.alignment.prepare import NAMED, Prepared, Rendering, prepare
from megatron_lite.alignment.store import Store, open_store
from megatron_lite.data.chat_template import ChatTemplate
from megatron_lite.data.json_tokenizer import JsonTokenizer
from megatron_lite.errors import DataError, run_command

CHATML = PLAIN["chatml"]
LONGEST = 400


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> JsonTokenizer:
    return JsonTokenizer(tokenizer_directory(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def rendering(tokenizer) -> Rendering:
    return Rendering("dialogue", tokenizer.path, CHATML, LONGEST)


def dialogue(text: str, turns: int = 1) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for _ in range(turns) for role in ("user", "assistant")]}


def pair(chosen: str, rejected: str, prompt: str = "a", **others: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **others}


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in rows), encoding="utf-8")
    return path


def samples(store: Store) -> list[list[tuple[list[int], list[bool]]]]:
    every = [store.sample(number) for number in range(len(store))]
    return [[(one.tokens.tolist(), one.trained.tolist()) for one in sample] for sample in every]


def content(prepared: Prepared) -> dict[str, bytes]:
    """Of a store's files, by their endings."""
    folder, name = prepared.prefix.parent, prepared.prefix.name
    return {path.name.removeprefix(name): path.read_bytes() for path in folder.glob(f"{name}.*")}


def test_a_store_has_each_rows_tokens_and_mask_in_order_and_the_rows_number(tmp_path, tokenizer, rendering):
    made = [dialogue("one"), "", dialogue("two\nlines", turns=3), dialogue("three")]
    prepared = prepare(written(tmp_path / "rows.jsonl", made), rendering, 1, tmp_path / "cache")
    store = open_store(prepared.prefix)
    masks = answer_masks(ChatTemplate(CHATML, tokenizer))
    expected = [masks.segment(Dialogue(tuple(made[row]["messages"]))) for row in (0, 2, 3)]
    assert samples(store) == [[(one.tokens.tolist(), one.trained.tolist())] for one in expected]
    assert store.columns["row"].tolist() == [0, 2, 3]
    assert store.lengths.tolist() == [len(one.tokens) for one in expected]
    assert (prepared.rows, prepared.samples, prepared.bad) == (3, 3, {})
    assert prepared.tokens == sum(len(one.tokens) for one in expected)
    assert prepared.trained_tokens == sum(int(one.trained.sum()) for one in expected)


def test_a_pair_is_a_sample_of_two_sequences_with_its_margin(tmp_path, tokenizer, rendering):
    made = [pair("b", "c", margin=1.5), pair("d e", "f")]
    path = written(tmp_path / "rows.jsonl", made)
    store = open_store(prepare(path, replace(rendering, kind="pair"), 1, tmp_path / "cache").prefix)
    prompt, end = tokenizer.encode("a"), tokenizer.eod_id
    for sample, row in zip(samples(store), made, strict=True):
        for (ids, trained), name in zip(sample, ("chosen", "rejected"), strict=True):
            assert ids == [*prompt, *tokenizer.encode(row[name]), end]
            assert trained == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
    assert store.columns["margin"].tolist() == [1.5, 0.0] and store.columns["row"].tolist() == [0, 1]


def test_one_worker_and_three_write_the_same_bits(tmp_path, rendering, monkeypatch):
    monkeypatch.setattr(rows_module, "AT_ONCE_BYTES", 4000)
    texts = random_texts(1, 120)
    made = ["no row" if number % 40 == 39 else dialogue(text, number % 3 + 1) for number, text in enumerate(texts)]
    path, skipping = written(tmp_path / "rows.jsonl", made), replace(rendering, bad_rows="skip", overlong="cut")
    one, three = (prepare(path, skipping, workers, tmp_path / f"{workers}") for workers in (1, 3))
    assert content(one) == content(three)
    assert {".bin", ".idx", ".json", ".trained", ".row.npy", ".store.json"} == set(content(one))
    assert replace(one, prefix=three.prefix) == three
    assert one.samples == 117 and one.cut > 0 and one.bad == {"no JSON": 3}


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.zst", "parquet"])
def test_a_table_and_compressed_lines_give_the_same_samples(tmp_path, rendering, ending):
    made = [dialogue(text, number % 3 + 1) for number, text in enumerate(random_texts(2, 9))]
    plain = written(tmp_path / "rows.jsonl", made)
    other = tmp_path / f"other.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(made), other)
    else:
        other.write_bytes({"jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}[ending](plain.read_bytes()))
    one, two = (open_store(prepare(path, rendering, 1, tmp_path / "cache").prefix) for path in (plain, other))
    assert samples(one) == samples(two) and len(one) > 0 and one.key != two.key


def test_the_same_content_is_found_again_wherever_and_whenever_it_was_written(tmp_path, rendering):
    path, cache = written(tmp_path / "rows.jsonl", [dialogue("one")]), tmp_path / "cache"
    first = prepare(path, rendering, 1, cache)
    stamp = first.prefix.with_name(first.prefix.name + ".bin").stat().st_mtime_ns
    os.utime(path, (0, 0))
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(path.read_bytes())
    assert prepare(path, rendering, 2, cache) == first == prepare(moved, rendering, None, cache)
    assert first.prefix.with_name(first.prefix.name + ".bin").stat().st_mtime_ns == stamp


def test_whatever_changes_samples_makes_another_store(tmp_path, rendering):
    cache = tmp_path / "cache"
    path = written(tmp_path / "rows.jsonl", [pair("b", "c")])
    pairs = replace(rendering, kind="pair")
    other_tokenizer = train_byte_level(tmp_path / "smaller", vocab_size=300)
    other_end = train_byte_level(tmp_path / "ended", vocab_size=300, eos_token="<|endoftext|>")
    changed = [
        {"longest": LONGEST + 1}, {"overlong": "cut"}, {"system_prompt": "be brief"}, {"system_prompt": ""},
        {"criterion": "helpful"}, {"template": "{# another #}" + CHATML}, {"template": None},
        {"tokenizer": str(other_tokenizer)}, {"tokenizer": str(other_end)},
    ]  # fmt: skip
    keys = [open_store(prepare(path, replace(pairs, **one), 1, cache).prefix).key for one in ({}, *changed)]
    path.write_text(path.read_text().replace('"b"', '"d"'))
    keys.append(open_store(prepare(path, pairs, 1, cache).prefix).key)
    assert len(set(keys)) == len(keys) == len(list(cache.glob("*.store.json")))


def test_a_tokenizer_that_another_one_replaced_makes_its_own_tokens(tmp_path, rendering):
    path = written(tmp_path / "rows.jsonl", [{"prompt": "the model", "completion": "reads a shard of text"}])
    plain = replace(rendering, tokenizer=str(tmp_path / "tokenizer"), template=None)
    counts = []
    for size in (259, 400):  # of the first each byte is a token
        train_byte_level(tmp_path / "tokenizer", vocab_size=size)
        counts.append(prepare(path, plain, 1, tmp_path / "cache").tokens)
    assert counts[1] < counts[0] == len("the model" + "reads a shard of text") + 1


BAD = [
    dialogue("fine"), "{", {"messages": [{"content": "a"}]}, dialogue(""), {"text": "a"}, dialogue(" "), dialogue("x"),
]  # fmt: skip
COUNTS = {"empty answer": 2, "no JSON": 1, "no role": 1, "unknown form": 1}


def test_bad_rows_end_the_preparation_with_the_first_one_and_counts_and_nothing_is_written(tmp_path, rendering, capsys):
    path, cache = written(tmp_path / "rows.jsonl", BAD), tmp_path / "cache"
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: prepare(path, rendering, 1, cache))
    assert caught.value.code == 3
    told = capsys.readouterr().err
    assert told.startswith(f"error: {path} line 2: is no JSON (") and told.count("\n") == 1
    end = "; 5 of 7 rows are bad (empty answer 2, no JSON 1, no role 1, unknown form 1): correct them, or leave them"
    assert end in told
    assert list(cache.iterdir()) == []


def test_bad_rows_are_left_out_counted_by_reason_and_the_first_ones_named(tmp_path, rendering, caplog):
    path = written(tmp_path / "rows.jsonl", BAD)
    with caplog.at_level("WARNING", "megatron_lite"):
        prepared = prepare(path, replace(rendering, bad_rows="skip"), 1, tmp_path / "cache")
    assert (prepared.rows, prepared.samples, prepared.bad) == (7, 2, COUNTS)
    assert open_store(prepared.prefix).columns["row"].tolist() == [0, 6]
    assert f"{path} line 4: message 1: the assistant's content is empty; it is left out" in caplog.messages
    many = written(tmp_path / "many.jsonl", [dialogue("")] * (NAMED + 5))
    caplog.clear()
    with caplog.at_level("WARNING", "megatron_lite"):
        assert prepare(many, replace(rendering, bad_rows="skip"), 1, tmp_path / "cache").samples == 0
    assert len(caplog.messages) == NAMED


def test_a_bad_row_of_a_table_is_named_by_its_number(tmp_path, rendering):
    pq.write_table(pa.Table.from_pylist([dialogue("a"), dialogue("")]), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet row 1: message 1: the assistant's content is empty; 1 of 2 "):
        prepare(tmp_path / "rows.parquet", rendering, 1, tmp_path / "cache")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([pair("b", "c"), {"prompt": "a", "chosen": "b"}], "line 2: has no 'rejected'"),
        ([pair("b", "c"), pair("b", "c", margin=float("nan"))], "line 2: margin is nan: must be a finite number"),
        ([pair("b", "b")], "line 1: has the same answer as chosen and as rejected"),
    ],
)
def test_a_pair_that_prefers_nothing_is_named(tmp_path, rendering, rows, reason):
    path = written(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=f"^{path} {reason}"):
        prepare(path, replace(rendering, kind="pair"), 1, tmp_path / "cache")


def test_answers_of_which_a_template_makes_the_same_tokens_are_no_pair(tmp_path, rendering):
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in ("b", "b "))
    path = written(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": chosen, "rejected": rejected}])
    with pytest.raises(DataError, match="line 1: has the same tokens as chosen and as rejected"):
        prepare(path, replace(rendering, kind="pair", template=PLAIN["llama3"]), 1, tmp_path / "cache")


def test_messages_without_a_template_are_bad_rows_and_plain_text_is_not(tmp_path, rendering):
    plain = replace(rendering, template=None)
    path = written(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    assert prepare(path, plain, 1, tmp_path / "cache").samples == 1
    with pytest.raises(DataError, match="line 1: has messages, but there is no chat template"):
        prepare(written(path, [dialogue("a")]), plain, 1, tmp_path / "cache")


def test_a_template_that_cannot_be_trained_with_is_no_rows_fault(tmp_path, rendering):
    path = written(tmp_path / "rows.jsonl", [dialogue("a")])
    with pytest.raises(DataError, match=r"^the chat template of .* cannot be trained with"):
        prepare(path, replace(rendering, template="{{ messages[0].content }}", bad_rows="skip"), 1, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_what_is_too_long_is_dropped_or_loses_its_end_and_is_counted(tmp_path, tokenizer, rendering):
    made = [dialogue("x" * 30), dialogue("y" * 60), {"prompt": "z" * 130, "completion": "z"}]
    path, cache = written(tmp_path / "rows.jsonl", made), tmp_path / "cache"
    whole = samples(open_store(prepare(path, rendering, 1, cache).prefix))
    longest = (len(whole[0][0][0]) + len(whole[1][0][0])) // 2
    assert len(whole[0][0][0]) < longest < len(whole[1][0][0]) and longest < 130
    assert any(whole[1][0][1][:longest])
    dropping = prepare(path, replace(rendering, longest=longest), 1, cache)
    assert (dropping.samples, dropping.dropped, dropping.cut) == (1, 2, 0)
    assert samples(open_store(dropping.prefix)) == whole[:1]
    cutting = prepare(path, replace(rendering, longest=longest, overlong="cut"), 1, cache)
    # Of the third no answer is left.
    assert (cutting.samples, cutting.dropped, cutting.cut) == (2, 1, 1)
    ids, trained = whole[1][0]
    assert samples(open_store(cutting.prefix)) == [whole[0], [(ids[:longest], trained[:longest])]]


@pytest.mark.parametrize(
    ("chosen", "rejected", "lengths"),
    [
        (10, 10, (12, 12)),  # fits
        (10, 40, (12, 28)),  # the longer one alone
        (40, 10, (28, 12)),
        (50, 40, (20, 20)),  # both
    ],
)
def test_a_pair_that_is_cut_fits_and_its_longer_answer_loses_more(tmp_path, rendering, chosen, rejected, lengths):
    digits = "1234567890" * 5  # a token each
    path = written(tmp_path / "rows.jsonl", [pair(digits[:chosen], digits[::-1][:rejected])])
    cutting = replace(rendering, kind="pair", longest=40, overlong="cut")
    prepared = prepare(path, cutting, 1, tmp_path / "cache")
    ((first, second),) = samples(open_store(prepared.prefix))
    assert (len(first[0]), len(second[0])) == lengths
    assert prepared.cut == (sum(lengths) < chosen + rejected + 4)


def test_a_pair_whose_cut_answers_are_the_same_is_dropped(tmp_path, rendering):
    path = written(tmp_path / "rows.jsonl", [pair("1" * 40 + "2", "1" * 40 + "3")])
    cutting = replace(rendering, kind="pair", longest=40, overlong="cut")
    prepared = prepare(path, cutting, 1, tmp_path / "cache")
    assert (prepared.samples, prepared.dropped, prepared.cut) == (0, 1, 0)


def test_rows_of_another_criterion_are_counted_and_not_taken(tmp_path, rendering):
    made = [pair("b", "c", criterion="helpful"), pair("b", "d", criterion="harmless"), pair("b", "e")]
    path = written(tmp_path / "rows.jsonl", made)
    prepared = prepare(path, replace(rendering, kind="pair", criterion="helpful"), 1, tmp_path / "cache")
    assert (prepared.rows, prepared.samples, prepared.others) == (3, 2, 1)
    assert open_store(prepared.prefix).columns["row"].tolist() == [0, 2]


PREPARE = """
import os, signal, sys
from pathlib import Path
from megatron_lite.alignment import store_writer
from megatron_lite.alignment.prepare import Rendering, prepare

def killed(path, *rest, publish=store_writer.publish):
    if path.name.endswith(".store.json"):
        os.kill(os.getpid(), signal.SIGKILL)
    publish(path, *rest)

folder, tokenizer, template, then = Path(sys.argv[1]), *sys.argv[2:]
if then == "kill":
    store_writer.publish = killed
prepare(folder / "rows.jsonl", Rendering("dialogue", tokenizer, template, 400), 1, folder / "cache")
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def apart(folder: Path, rendering: Rendering, then: str) -> subprocess.CompletedProcess:
    """folder/rows.jsonl prepared by a process of its own."""
    arguments = [str(folder), rendering.tokenizer, CHATML, then]
    return subprocess.run([sys.executable, "-c", PREPARE, *arguments], capture_output=True, text=True)


def test_a_preparation_killed_before_its_last_file_leaves_nothing_that_is_taken_for_whole(tmp_path, rendering):
    path, cache = written(tmp_path / "rows.jsonl", [dialogue("one"), dialogue("two")]), tmp_path / "cache"
    assert apart(tmp_path, rendering, "kill").returncode == -signal.SIGKILL
    (trained,) = cache.glob("*.trained")
    with pytest.raises(DataError, match=r"no rows were prepared at .*, or not to the end"):
        open_store(cache / trained.stem)
    again = prepare(path, rendering, 1, cache)
    assert again.prefix == cache / trained.stem and len(open_store(again.prefix)) == 2
    assert content(again) == content(prepare(path, rendering, 1, tmp_path / "another"))


@pytest.mark.nightly
def test_memory_does_not_grow_with_the_rows_text(tmp_path, rendering):
    """180,000 rows more are 50 MB of text and 300 MB as objects; what is kept of each is its number."""
    peaks = []
    for count in (20_000, 200_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        written(folder / "rows.jsonl", [dialogue("one" * 40)] * count)
        done = apart(folder, rendering, "go on")
        peaks.append(int(done.stdout))  # KiB of this process alone
    assert peaks[1] - peaks[0] < 32_000, peaks


def test_masks_are_bytes_beside_the_tokens(tmp_path, rendering):
    path = written(tmp_path / "rows.jsonl", [dialogue("a")])
    store = open_store(prepare(path, rendering, 1, tmp_path / "cache").prefix)
    assert store.trained.dtype == np.uint8 and len(store.trained) == store.lengths.sum()
