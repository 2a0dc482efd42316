"""Rank 0 asks and all ranks answer, on layouts: the same as one process, and nobody is left waiting."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch.distributed as dist
from support.asking import build_to_ask
from support.layouts import Layout

from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.evaluation.replicas import Prompt, Replica, patient, prompt_item, question_item
from megatron_lite.inference.shared_beginnings import Question
from megatron_lite.parallel.pipeline.stage import held
from megatron_lite.parallel.words import LostRank, Words

LENGTH = 24
LAYOUTS = [
    Layout(tensor=2),
    Layout(pipeline=2),
    Layout(data=2),
    Layout(context=2),
    Layout(tensor=2, pipeline=2, data=2),
]
QUESTIONS = [Question((n % 5, 7, 2 * n % 50), (n % 3, *range(n % 4))) for n in range(17)]
PROMPTS = [Prompt((n, 7, n), 3 + n, ("ab",), repetition_penalty=1.1) for n in range(5)]
SAMPLED = [Prompt((3, 7), 6, (), temperature=1.0, top_k=9, top_p=0.9, min_p=0.01, number=n) for n in (4, 9, 4)]
LETTERS = cast(
    Tokenizer,
    SimpleNamespace(
        eod_id=4, vocab_size=60, stop_ids=frozenset({4, 5}),
        decode=lambda ids: "".join("abc"[token % 3] for token in ids),
    ),
)  # fmt: skip


def asked(replica: Replica) -> list:
    """What rank 0 finds; all others follow it."""
    with held(replica.model.stage), patient(replica.words):
        if replica.model.mesh.rank:
            replica.follow()
            return []
        found = [replica.ask("score", [question_item(one) for one in some]) for some in (QUESTIONS, QUESTIONS[:1])]
        found += [replica.ask("write", [prompt_item(one) for one in some]) for some in (PROMPTS, SAMPLED)]
        replica.end()
        return found


def words() -> Words:
    """Of the ranks of a test's world."""
    store = dist.distributed_c10d._get_default_store()
    return Words.over(store, dist.get_rank(), dist.get_world_size())


def on_a_layout(layout: Layout) -> list:
    return asked(Replica(build_to_ask(layout, length=LENGTH), LETTERS, words()))


@pytest.fixture(scope="module")
def alone() -> list:
    return asked(Replica(build_to_ask(Layout(), length=LENGTH), LETTERS, Words.alone()))


def test_alone_they_are_what_json_can_hold(alone):
    assert [len(some) for some in alone] == [17, 1, 5, 3]
    assert alone[1][0] == pytest.approx(alone[0][0]) and json.loads(json.dumps(alone)) == alone
    assert alone[3][0] == alone[3][2] != alone[3][1]  # random numbers are those of the prompt's number
    assert all("ab" not in text for text in alone[2])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_all_ranks_of_a_layout_find_what_one_process_does(layout, alone, ranks):
    found, *others = ranks.run(on_a_layout, layout.world, layout)
    assert others == [[]] * (layout.world - 1)
    assert found[2:] == alone[2:]
    for ours, truth in zip(found[0] + found[1], alone[0] + alone[1], strict=True):
        assert ours == [pytest.approx(truth[0], rel=0, abs=1e-11), truth[1]]


def failing(layout: Layout, who: int) -> str:
    """What a rank ends with when rank `who` fails."""
    said = words()
    replica = Replica(build_to_ask(layout, length=LENGTH), LETTERS, said)
    if who == replica.model.mesh.rank:
        said.fail("no more disk")
        return "failed"
    said.patience = 30.0
    try:
        asked(replica)
    except LostRank as error:
        return str(error)
    return "went on"


@pytest.mark.parametrize("who", [0, 1])
def test_when_a_rank_fails_the_others_end_with_it(who, ranks):
    found = ranks.run(failing, 2, Layout(tensor=2), who)
    assert found[who] == "failed"
    assert found[1 - who] in {f"evaluation.{what}: rank {who}: no more disk" for what in ("asked", "answered")}


def test_patience_is_as_it_was_afterwards():
    said = replace(Words.alone(), patience=5.0)
    with pytest.raises(ValueError, match="any"), patient(said):
        assert said.patience == float("inf")
        raise ValueError("any")
    assert said.patience == 5.0
