"""What follows pretraining sends in an order that NCCL's rules let through, on every kind of layout: adapters, a scalar
head and pairs, with what goes before the first step. On paper, so that every rank of a world is there at once.
"""

from dataclasses import replace

import pytest
from nccl_replay import replay
from support.layouts import Layout, build_trainer
from support.rows import aligned

from megatron_lite.alignment.run import objective_of
from megatron_lite.config import LoraConfig
from megatron_lite.parallel.collectives import Event, Recorder
from megatron_lite.planning.paper import choice_on_paper, fake_world, packed

LORA = LoraConfig(rank=4, targets=("q_proj", "o_proj", "gate_proj", "down_proj"))
KINDS = [
    Layout(tensor=2, pipeline=2, data=2),
    Layout(tensor=2, data=2, sequence=False, zero_regather="step"),
    Layout(pipeline=2, data=2, schedule="zb_h1", zero_stage=2),
    Layout(pipeline=2, virtual_stages=2, tensor=2, recompute="full"),
    Layout(pipeline=2, schedule="zb_v", virtual_stages=2, data=2, recompute="selective"),
    Layout(pipeline=4, schedule="gpipe", zero_stage=0),
    *(Layout(context=2, context_kind=kind, tensor=2, pipeline=2) for kind in ("ring", "ulysses")),
    Layout(data=4, zero_group=2),
]
WHAT = [("sft", LORA), ("reward", None), ("reward", LORA), ("dpo", None), ("dpo", LORA)]
DEFAULT = [(KINDS[2], "reward", LORA), (KINDS[5], "dpo", None)]
EVERY = [
    pytest.param(kind, *what, marks=() if (kind, *what) in DEFAULT else pytest.mark.nightly)
    for kind in KINDS
    for what in WHAT
]


def events_of(layout: Layout, algorithm: str, rank: int) -> list[Event]:
    """Of one rank's rehearsal and a step of packed rows."""
    config = aligned(layout, algorithm, global_batch_size=8)
    objective, recorder = objective_of(config), Recorder()
    batch = packed(config, objective, documents=4)
    with fake_world(rank, layout.world):
        layout = replace(layout, objective=objective)
        trainer = build_trainer(layout, recorder, config, "meta", choice_on_paper(config), batch())
        trainer.train_step([batch() for _ in range(trainer.resolved.microbatches)], learning_rate=1e-3)
    return recorder.events


@pytest.mark.parametrize(("layout", "algorithm", "lora"), EVERY, ids=str)
def test_the_ranks_of_a_layout_replay(layout, algorithm, lora):
    layout = replace(layout, lora=lora, loss_chunk=5 if algorithm == "dpo" else None)
    transcripts = [events_of(layout, algorithm, rank) for rank in range(layout.world)]
    sites = {event.site for events in transcripts for event in events}
    assert any(".narrow" in site for site in sites) == (lora is not None and layout.tensor > 1)
    replay(transcripts)
