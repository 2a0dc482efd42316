"""The equality tests can fail: each planted fault changes a compared number, and not by a crash or a hang."""

import ast
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import pytest
from support.layouts import Layout, Outcome, combine, differences, run_layout, run_rank
from support.mutations import (
    GENERATING_ROOMS,
    OTHER_ROOMS,
    PACKAGE,
    STEP_ROOMS,
    Division,
    Message,
    divisions,
    masks,
    unwatched,
)
from support.objectives import Explore, Regression
from support.writing import Written, differences_in_writing, write

from megatron_lite.alignment.dpo import Dpo
from megatron_lite.alignment.reward import BradleyTerry
from megatron_lite.config import LoraConfig
from megatron_lite.model.objective import CrossEntropy
from megatron_lite.parallel.collectives import Event

EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA = LoraConfig(rank=3, alpha=5.0, dropout=0.3, targets=EVERY)
# Between them these run every call site. Two blocks are enough, and the third step is past the warmup.
STAGES = [
    Layout(tensor=2, pipeline=2, data=2, tied=True, objective=CrossEntropy(0.01, 1.3), layers=2, steps=3, asks=True),
    Layout(tensor=2, data=2, zero_stage=0, sequence=False, layers=2, steps=3),
    Layout(pipeline=2, context=2, data=2, documents=True, zero_group=2, layers=2, steps=3),
    Layout(tensor=2, context=2, context_kind="ulysses", loss_chunk=3, layers=2, steps=3),
    Layout(tensor=2, objective=Explore(), layers=2, steps=3),
    Layout(tensor=2, objective=Regression(), head="scalar", layers=2, steps=3),
    Layout(tensor=2, lora=LORA, neftune=5.0, layers=2, steps=3),
    Layout(tensor=2, lora=LORA, neftune=5.0, sequence=False, layers=2, steps=3),
    Layout(tensor=2, objective=Dpo(0.5, "ipo", 0.1, 0.2, length_normalized=True), pairs=True, layers=2, steps=3),
    Layout(tensor=2, objective=BradleyTerry(), head="scalar", pairs=True, layers=2, steps=3),
]
GENERATES = Layout(tensor=2, pipeline=2, data=2, lora=LORA, layers=2)
CAUGHT = 1e-6  # far above the 1e-14 of rounding
Mutation = Message | Division


def run_mutated(run: Callable[[Layout], object], layout: Layout, mutation: Mutation) -> object:
    with mutation.planted():
        return run(layout)


def caught_by(ranks, layout: Layout, truth: Outcome, mutation: Mutation) -> str:
    """The number of a training run that gave the mutation away; empty if none did."""
    results = ranks.run(run_mutated, layout.world, run_rank, layout, mutation)
    if wrong := worst_of(differences(combine(results), truth)):
        return wrong
    for rank, result in enumerate(results):
        if result.reported != results[0].reported:
            return f"rank {rank} reports other losses or norms than rank 0"
    return ""


def caught_in_writing(ranks, truth: Written, mutation: Mutation) -> str:
    """The same of what is generated."""
    results = ranks.run(run_mutated, GENERATES.world, write, GENERATES, mutation)
    return worst_of(differences_in_writing(results, truth))


def worst_of(found: Mapping[str, float]) -> str:
    """`not <=` also catches a NaN."""
    wrong = {name: value for name, value in found.items() if not value <= CAUGHT}
    worst = max(wrong, key=lambda name: wrong[name], default=None)
    return "" if worst is None else f"{worst} off by {wrong[worst]:.1e}"


@pytest.fixture(scope="module")
def truths(ranks):
    """For each stage the unmutated outcome of one process, and the messages that the layout sends."""
    found = []
    for layout in STAGES:
        messages = messages_of(run_layout(ranks, layout).transcripts)
        found.append((layout, run_layout(ranks, layout.single()), messages))
    return found


@pytest.fixture(scope="module")
def written(ranks) -> tuple[Written, set[Message]]:
    """What one process writes, and the messages that the layout sends."""
    found = ranks.run(write, GENERATES.world, GENERATES)
    return write(GENERATES.single()), messages_of([rank.events for rank in found])


def messages_of(transcripts: list[list[Event]]) -> set[Message]:
    """Before the first step nothing is carried that a number depends on."""
    events = (event for transcript in transcripts for event in transcript if event.phase != "connect")
    return {Message(event.site, event.operation) for event in events if event.site not in NO_NUMBER}


COMMUNICATES = {"_sum_ranges", "enter", "leave", "enter_backward", "leave_backward", "enter_linear", "linear_leave"}
COMMUNICATES |= {"all_gather", "reduce_scatter", "all_reduce", "broadcast", "send", "receive", "Inbox", "Outbox"}
COMMUNICATES |= {"pass_on", "apply", "whole_sequences", "_send", "_receive", "qkv", "o", "gate_up", "down"}
# Divisions that the first stage does not reach, of a module or of one of its functions, and the stage that does.
ELSEWHERE = {"kernels.reference.attention": 2, "parallel.context": 2, "model.objective.CrossEntropy.token_weights": 3}
ELSEWHERE |= {"kernels.reference.entropy": 4, "model.parameters.Specification.head": 5}
ELSEWHERE |= {"model.noise": 6, "model.parameters.Specification.adapter": 6}
ELSEWHERE |= {"alignment.dpo": 8, "alignment.reward": 9}
# Lengths, without which no number could be read: a wrong one is an error.
NO_NUMBER = {"outputs.sizes", "generate.sizes"}


def site_names() -> set[str]:
    """Every literal call site in the rooms that train and generate; barriers carry no number and are not among them."""
    found = set()
    for room in (*STEP_ROOMS, *GENERATING_ROOMS):
        for path in (PACKAGE / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in COMMUNICATES:
                    values = [a.value for a in node.args if isinstance(a, ast.Constant)]
                    found |= {value for value in values if isinstance(value, str)}
    return found


def stage_of(division: Division) -> int:
    whole = ELSEWHERE.get(division.module, 0)
    return ELSEWHERE.get(f"{division.module}.{division.function}", whole)


def test_every_room_is_watched_or_says_why_not():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == {*STEP_ROOMS, *GENERATING_ROOMS, *OTHER_ROOMS}


def test_no_division_stands_in_a_module_that_the_planted_faults_leave_out():
    assert not unwatched()


def test_the_planted_faults_cover_every_named_call_site(truths, written):
    exercised = {message.site for *_, messages in (*truths, written) for message in messages}
    assert len(site_names()) >= 15
    assert site_names() - NO_NUMBER <= exercised
    assert site_names() >= NO_NUMBER
    assert {f"{site}.again" for site in ("attention.enter", "mlp.enter", "head.enter")} <= exercised
    narrow = {f"{unit}.{way}.narrow" for unit in ("attention", "mlp") for way in ("enter", "leave")}
    assert narrow | {f"{site}.backward" for site in narrow} <= exercised


def test_the_faults_planted_in_generation_are_those_of_all_its_messages(written):
    """By the table of planning/generation_traffic.py; all of them are planted, also those that training has, too."""
    _, messages = written
    own = {Message(f"decode.{what}", way) for what in ("activation", "result") for way in ("send", "recv")}
    own |= {Message(site, "all_gather") for site in ("decode.logits", "generate.answers")}
    found = {site for site in site_names() - NO_NUMBER if site.startswith(("decode.", "generate."))}
    assert {message.site for message in own} == found
    leaves = {Message(f"{site}.leave", "all_reduce") for site in ("embedding", "attention", "mlp")}
    leaves |= {Message(f"{site}.leave.narrow", "all_reduce") for site in ("attention", "mlp")}
    gathers = {Message(site, "all_gather") for site in ("zero.gather", "cross_entropy.combine")}
    assert messages == own | leaves | gathers


@pytest.mark.nightly
def test_every_planted_fault_is_caught_by_its_numbers(ranks, truths, capsys):
    cases: list[tuple[int, Mutation]] = []
    seen: set[Message] = set()
    for number, (_, _, messages) in enumerate(truths):
        cases += [(number, message) for message in sorted(messages - seen, key=str)]
        seen |= messages
    cases += [(stage_of(one), one) for one in (*divisions(), *masks()) if not one.generates]
    planted = [(mutation, partial(caught_by, ranks, *truths[number][:2])) for number, mutation in cases]
    assert not survivors_of(planted, capsys)


@pytest.mark.nightly
def test_every_fault_planted_in_generation_is_caught_by_what_is_written(ranks, written, capsys):
    truth, messages = written
    cases: list[Mutation] = [*sorted(messages, key=str), *(one for one in divisions() if one.generates)]
    assert not survivors_of([(mutation, partial(caught_in_writing, ranks, truth)) for mutation in cases], capsys)


def survivors_of(planted: list[tuple[Mutation, Callable[[Mutation], str]]], capsys) -> list[str]:
    """Of mutations with what catches each; every verdict is printed."""
    survivors = []
    with capsys.disabled():
        print(f"\n{len(planted)} planted faults:")
        for mutation, caught in planted:
            verdict = caught(mutation)
            print(f"  {mutation}: {verdict or 'SURVIVED'}")
            if not verdict:
                survivors.append(str(mutation))
        print(f"survivors: {survivors or 'none'}")
    return survivors


def test_an_unplanted_run_is_not_caught(ranks, truths, written):
    layout, truth, _ = truths[0]
    nothing = Message("no.such.site", "all_gather")
    assert caught_by(ranks, replace(layout), truth, nothing) == ""
    assert caught_in_writing(ranks, written[0], nothing) == ""
