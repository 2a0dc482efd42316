"""Layouts that between them cover every possible pair of choices: each is one process, by raw gradients in float64.

Drawn from a seed; the pairs that no layout of at most eight ranks can have are known from trying.
"""

import random
from itertools import combinations

import pytest
from nccl_replay import replay
from support.layouts import Layout, differences, run_layout

from megatron_lite.config import LoraConfig, resolve
from megatron_lite.errors import UsageError
from megatron_lite.parallel.ledger import ledger
from megatron_lite.planning.traffic import step_traffic

CHOICES = {
    "tensor": (1, 2),
    "sequence": (True, False),
    "pipeline": (1, 2, 4),
    "virtual_stages": (1, 2),
    "schedule": ("gpipe", "1f1b", "zb_h1", "zb_v"),
    "context": (1, 2, 4),
    "context_kind": ("ring", "ulysses"),
    "data": (1, 2, 4),
    "zero_stage": (0, 1, 2, 3),
    "zero_regather": ("microbatch", "step"),
    "zero_group": (None, 2),
    "recompute": ("none", "selective", "full", "every_2"),
    "tied": (False, True),
    "uneven": (False, True),
    "documents": (False, True),
    "loss_chunk": (None, 3),
    "lora": (None, LoraConfig(rank=3, alpha=5.0, dropout=0.3, targets=("q_proj", "v_proj", "o_proj", "up_proj"))),
}
LEAST, RANKS, TRIES = 200, 8, 400
MORE_LAYOUTS, MORE_RANKS = 12, 16
Pair = frozenset[tuple[str, object]]


def layout_of(choice: dict) -> Layout | None:
    """None where the choice is none that the configuration takes, or needs more ranks than there may be."""
    fields = {name: value for name, value in choice.items() if name != "uneven"}
    layers = max(4, choice["pipeline"] * choice["virtual_stages"]) + choice["uneven"]
    layout = Layout(**fields, layers=layers, steps=1)
    if layout.world > MORE_RANKS:
        return None
    try:
        resolve(layout.config(), layout.world)
    except UsageError:
        return None
    return layout


def pairs_of(choice: dict) -> set[Pair]:
    return {frozenset(pair) for pair in combinations(choice.items(), 2)}


def cover(seed: int) -> tuple[list[Layout], int, list[Pair]]:
    """(layouts, pairs covered, pairs that no try could have)."""
    draw = random.Random(seed)

    def valid(fixed: dict) -> tuple[dict, Layout] | None:
        for _ in range(TRIES):
            choice = {name: draw.choice(values) for name, values in CHOICES.items()} | fixed
            if (layout := layout_of(choice)) is not None and layout.world <= RANKS:
                return choice, layout
        return None

    layouts: dict[Layout, None] = {}
    covered: set[Pair] = set()
    impossible: list[Pair] = []
    everything = [
        {one: a, other: b} for one, other in combinations(CHOICES, 2) for a in CHOICES[one] for b in CHOICES[other]
    ]
    for fixed in everything:
        if frozenset(fixed.items()) in covered:
            continue
        found = valid(fixed)
        if found is None:
            impossible.append(frozenset(fixed.items()))
            continue
        covered |= pairs_of(found[0])
        layouts[found[1]] = None
    while len(layouts) < LEAST:
        choice, layout = valid({})
        covered |= pairs_of(choice)
        layouts[layout] = None
    return list(layouts), len(covered), impossible


def of_sixteen(seed: int) -> list[Layout]:
    """Layouts drawn from those of sixteen ranks, on at least three axes."""
    draw = random.Random(seed)
    layouts: dict[Layout, None] = {}
    while len(layouts) < MORE_LAYOUTS:
        layout = layout_of({name: draw.choice(values) for name, values in CHOICES.items()})
        if layout is None or layout.world != MORE_RANKS:
            continue
        if sum(size > 1 for size in (layout.tensor, layout.pipeline, layout.context, layout.data)) >= 3:
            layouts[layout] = None
    return list(layouts)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_layouts_that_cover_every_pair_of_choices_are_one_process(ranks, capsys):
    layouts, covered, impossible = cover(seed=11)
    with capsys.disabled():
        print(f"\n{len(layouts)} layouts cover {covered} pairs of choices; not to be had: {len(impossible)}")
        for pair in impossible:
            print("  " + ", ".join(f"{name} = {value}" for name, value in sorted(pair)))
    _compare(ranks, layouts, capsys)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_sixteen_ranks_are_one_process(ranks, capsys):
    layouts = of_sixteen(seed=16)
    with capsys.disabled():
        print("\n" + "\n".join(map(str, layouts)))
    _compare(ranks, layouts, capsys)


def _compare(ranks, layouts: list[Layout], capsys) -> None:
    """Each layout with one process, its order under NCCL's rules, its ledger with the closed forms."""
    singles = {}
    worst, wrong = 0.0, []
    for layout in layouts:
        one = layout.single()
        if one not in singles:
            singles[one] = run_layout(ranks, one)
        outcome = run_layout(ranks, layout)
        error = max(differences(outcome, singles[one]).values())
        worst = max(worst, error)
        if not error < 1e-10:
            wrong.append(f"{layout}: off by {error:.1e}")
        replay(outcome.transcripts)
        _check_ledger(layout, outcome.transcripts)
    with capsys.disabled():
        print(f"worst difference {worst:.1e}; not equal: {wrong or 'none'}")
    assert not wrong


def _check_ledger(layout: Layout, transcripts) -> None:
    config = layout.config()
    resolved = resolve(config, layout.world)
    schedule = layout.schedule_of(config, resolved, resolved.microbatches)
    for rank, events in enumerate(transcripts):
        shown = {key: (entry.calls, entry.bytes) for key, entry in ledger(events).items()}
        assert shown == step_traffic(config, resolved, schedule, rank // (layout.world // layout.pipeline)), str(layout)


def test_the_draw_is_the_same_every_time_and_each_layout_fits():
    first, again = cover(seed=11), cover(seed=11)
    assert first == again
    assert len(first[0]) >= LEAST
    assert all(layout.world <= RANKS for layout in first[0])
