"""The equality tests can fail: each planted fault changes a compared number, and not by a crash or a hang."""

import ast
from dataclasses import replace

import pytest
from support.layouts import Layout, Outcome, combine, differences, run_layout, run_rank
from support.mutations import OTHER_ROOMS, PACKAGE, STEP_ROOMS, Division, Message, divisions, unwatched
from support.objectives import Explore, Regression

from megatron_lite.model.objective import CrossEntropy

# Between them these run every call site. Two blocks are enough, and the third step is past the warmup.
STAGES = [
    Layout(tensor=2, pipeline=2, data=2, tied=True, objective=CrossEntropy(0.01, 1.3), layers=2, steps=3, asks=True),
    Layout(tensor=2, data=2, zero_stage=0, sequence=False, layers=2, steps=3),
    Layout(pipeline=2, context=2, data=2, documents=True, zero_group=2, layers=2, steps=3),
    Layout(tensor=2, context=2, context_kind="ulysses", loss_chunk=3, layers=2, steps=3),
    Layout(tensor=2, objective=Explore(), layers=2, steps=3),
    Layout(tensor=2, objective=Regression(), head="scalar", layers=2, steps=3),
]
CAUGHT = 1e-6  # far above the 1e-14 of rounding


def run_mutated(layout: Layout, mutation: Message | Division):
    with mutation.planted():
        return run_rank(layout)


def caught_by(ranks, layout: Layout, truth: Outcome, mutation: Message | Division) -> str:
    """The number that gave the mutation away; empty if none did."""
    results = ranks.run(run_mutated, layout.world, layout, mutation)
    outcome = combine(results)
    found = differences(outcome, truth)
    # `not <=` also catches a NaN.
    wrong = {name: value for name, value in found.items() if not value <= CAUGHT}
    if wrong:
        worst = max(wrong, key=wrong.get)
        return f"{worst} off by {wrong[worst]:.1e}"
    for rank, result in enumerate(results):
        if result.reported != results[0].reported:
            return f"rank {rank} reports other losses or norms than rank 0"
    return ""


@pytest.fixture(scope="module")
def truths(ranks):
    """For each stage the unmutated outcome of one process, and the messages that the layout sends."""
    found = []
    for layout in STAGES:
        outcome = run_layout(ranks, layout)
        events = [event for transcript in outcome.transcripts for event in transcript]
        # Before the first step nothing is carried that a number depends on.
        messages = {
            Message(event.site, event.operation)
            for event in events
            if event.phase != "connect" and event.site not in NO_NUMBER
        }
        found.append((layout, run_layout(ranks, layout.single()), messages))
    return found


COMMUNICATES = {"_sum_ranges", "enter", "leave", "enter_backward", "leave_backward", "enter_linear", "linear_leave"}
COMMUNICATES |= {"all_gather", "reduce_scatter", "all_reduce", "broadcast", "send", "receive", "Inbox", "Outbox"}
COMMUNICATES |= {"pass_on", "apply", "whole_sequences"}
# Divisions that the first stage does not reach, of a module or of one of its functions, and the stage that does.
ELSEWHERE = {"kernels.reference.attention": 2, "parallel.context": 2, "model.objective.CrossEntropy.token_weights": 3}
ELSEWHERE |= {"kernels.reference.entropy": 4}
# Lengths, without which no number could be read: a wrong one is an error.
NO_NUMBER = {"outputs.sizes"}


def site_names() -> set[str]:
    """Every literal call site in the rooms that make a step; barriers carry no number and are not among them."""
    found = set()
    for room in STEP_ROOMS:
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
    assert rooms == {*STEP_ROOMS, *OTHER_ROOMS}


def test_no_division_stands_in_a_module_that_the_planted_faults_leave_out():
    assert not unwatched()


def test_the_planted_faults_cover_every_named_call_site(truths):
    exercised = {message.site for _, _, messages in truths for message in messages}
    assert len(site_names()) >= 15
    assert site_names() - NO_NUMBER <= exercised
    assert site_names() >= NO_NUMBER
    assert {f"{site}.again" for site in ("attention.enter", "mlp.enter", "head.enter")} <= exercised


@pytest.mark.nightly
def test_every_planted_fault_is_caught_by_its_numbers(ranks, truths, capsys):
    cases: list[tuple[int, Message | Division]] = []
    seen: set[Message] = set()
    for number, (_, _, messages) in enumerate(truths):
        cases += [(number, message) for message in sorted(messages - seen, key=str)]
        seen |= messages
    cases += [(stage_of(division), division) for division in divisions()]
    survivors = []
    with capsys.disabled():
        print(f"\n{len(cases)} planted faults:")
        for number, mutation in cases:
            layout, truth, _ = truths[number]
            verdict = caught_by(ranks, layout, truth, mutation)
            print(f"  {mutation}: {verdict or 'SURVIVED'}")
            if not verdict:
                survivors.append(str(mutation))
        print(f"survivors: {survivors or 'none'}")
    assert not survivors


def test_an_unplanted_run_is_not_caught(ranks, truths):
    layout, truth, _ = truths[0]
    assert caught_by(ranks, replace(layout), truth, Message("no.such.site", "all_gather")) == ""
