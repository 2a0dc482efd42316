"""The replay lets right programs through and names the fault of each wrong one."""

import time
from dataclasses import dataclass, field, replace

import pytest
from nccl_replay import ReplayError, replay

from megatron_lite.parallel.collectives import Event
from megatron_lite.parallel.pipeline.routes import received_on, sent_on
from megatron_lite.parallel.pipeline.schedules import SCHEDULES, one_f_one_b, split_backward


@dataclass
class Writer:
    """Writes the transcript of one rank by hand."""

    rank: int
    events: list[Event] = field(default_factory=list)
    issued: int = 0

    def issue(self, operation, axis, group, site, size=64, peer=None, batch=None) -> int:
        self.issued += 1
        self.events.append(Event("issue", self.issued, axis, group, operation, site, size, peer, batch))
        return self.issued

    def wait(self, handle: int) -> None:
        issue = next(e for e in self.events if e.kind == "issue" and e.handle == handle)
        self.events.append(replace(issue, kind="wait"))

    def call(self, *arguments, **named) -> None:
        self.wait(self.issue(*arguments, **named))


def connect(writers, *groups) -> None:
    """Use each (axis, group) once, as a run does before its first step."""
    for group in groups:
        for writer in writers:
            writer.call("all_reduce", *group, "connect")


def connect_ring(writers, group) -> None:
    """Connect each two neighbours of a group."""
    world = len(writers)
    for writer in writers:
        peers = {"send": (writer.rank + 1) % world, "recv": (writer.rank - 1) % world}
        handles = [writer.issue(what, *group, "connect", peer=peer, batch=-1) for what, peer in peers.items()]
        for handle in handles:
            writer.wait(handle)


def pipeline_program(schedule, shared=False):
    """The transcripts of a schedule with sends in flight until the end and receives where they are needed.

    One two-rank communicator for each channel or, if `shared`, one for each pair of stages.
    """
    transcripts = []
    for stage, actions in enumerate(schedule.actions):
        writer, sends = Writer(stage), []

        def issue(operation, channel, writer=writer, stage=stage):
            pair = (min(channel.sender, channel.receiver), max(channel.sender, channel.receiver))
            axis = "pipeline" if shared else f"{channel.direction} {channel.sender}-{channel.receiver}"
            site = f"{channel.direction}.{operation}"
            return writer.issue(operation, axis, pair, site, peer=sum(pair) - stage)

        for action in actions:
            if (channel := received_on(action, schedule.placement, stage)) is not None:
                writer.wait(issue("recv", channel))
            if (channel := sent_on(action, schedule.placement, stage)) is not None:
                sends.append(issue("send", channel))
        for handle in sends:
            writer.wait(handle)
        transcripts.append(writer.events)
    return transcripts


@pytest.mark.parametrize("stages", [2, 3, 4, 8])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", ["gpipe", "1f1b", "split 1f1b", "interleaved_1f1b", "zb_h1", "zb_v"])
def test_pipelines_with_a_communicator_for_each_channel_complete(name, stages, groups):
    chunks = 2 if name in ("interleaved_1f1b", "zb_v") else 1
    schedule = SCHEDULES[name.removeprefix("split ")](stages, chunks, groups * stages)
    replay(pipeline_program(split_backward(schedule, 3) if name.startswith("split") else schedule))


def test_1f1b_on_one_communicator_for_both_directions_deadlocks():
    with pytest.raises(ReplayError, match=r"deadlock: rank 0 at event . waits for recv backward.recv"):
        replay(pipeline_program(one_f_one_b(2, 1, 4), shared=True))


def test_an_early_receive_on_a_shared_communicator_is_caught():
    edge = ("pipeline", (0, 1))
    first, second = Writer(0), Writer(1)
    sent = first.issue("send", *edge, "activation", peer=1)
    early = first.issue("recv", *edge, "gradient", peer=1)  # before the second activation has gone
    sent_too = first.issue("send", *edge, "activation", peer=1)
    for handle in (sent, early, sent_too):
        first.wait(handle)
    second.call("recv", *edge, "activation", peer=0)
    second.call("recv", *edge, "activation", peer=0)
    second.call("send", *edge, "gradient", peer=0)
    with pytest.raises(ReplayError, match=r"rank 0 at event 4 waits for recv gradient .* not at the head on rank 1"):
        replay([first.events, second.events])


def test_the_same_early_receive_on_a_communicator_of_its_own_completes():
    first, second = Writer(0), Writer(1)
    connect((first, second), ("pipeline.forward", (0, 1)), ("pipeline.backward", (0, 1)))
    handles = [
        first.issue("send", "pipeline.forward", (0, 1), "activation", peer=1),
        first.issue("recv", "pipeline.backward", (0, 1), "gradient", peer=1),
        first.issue("send", "pipeline.forward", (0, 1), "activation", peer=1),
    ]
    for handle in handles:
        first.wait(handle)
    second.call("recv", "pipeline.forward", (0, 1), "activation", peer=0)
    second.call("recv", "pipeline.forward", (0, 1), "activation", peer=0)
    second.call("send", "pipeline.backward", (0, 1), "gradient", peer=0)
    replay([first.events, second.events])


def ring(world, batched, steps=3):
    """Each rank passes a block to the next one and takes one from the one before, `steps` times, after four events that
    connect them.
    """
    group = tuple(range(world))
    transcripts = []
    writers = [Writer(rank) for rank in range(world)]
    connect_ring(writers, ("context", group))
    for rank, writer in enumerate(writers):
        for step in range(steps):
            batch = step if batched else None
            handles = [
                writer.issue("send", "context", group, "ring", peer=(rank + 1) % world, batch=batch),
                writer.issue("recv", "context", group, "ring", peer=(rank - 1) % world, batch=batch),
            ]
            for handle in handles:
                writer.wait(handle)
        transcripts.append(writer.events)
    return transcripts


@pytest.mark.parametrize("world", [2, 3, 8])
def test_a_ring_of_batched_sends_completes(world):
    replay(ring(world, batched=True))


@pytest.mark.parametrize("world", [2, 3, 8])
def test_opposing_unbatched_sends_are_caught(world):
    with pytest.raises(
        ReplayError, match=r"deadlock: rank 0 at event 6 waits for send ring .* not at the head on rank 1"
    ):
        replay(ring(world, batched=False))


def test_an_unbatched_ring_completes_when_one_rank_receives_first():
    transcripts = ring(3, batched=False, steps=1)
    connected, (send, receive, *waits) = transcripts[0][:4], transcripts[0][4:]
    replay([[*connected, receive, send, *waits], *transcripts[1:]])


def collective_program():
    transcripts = []
    for rank in range(4):
        writer = Writer(rank)
        tensor = (0, 1) if rank < 2 else (2, 3)
        data = (rank % 2, rank % 2 + 2)
        gather = writer.issue("all_gather", "zero", data, "unit.gather", 4096)
        writer.call("all_gather", "tensor", tensor, "attention.gather")
        writer.call("reduce_scatter", "tensor", tensor, "attention.scatter")
        writer.wait(gather)
        writer.call("all_reduce", "world", (0, 1, 2, 3), "norm", 4)
        transcripts.append(writer.events)
    return transcripts


def test_overlapping_collectives_on_different_communicators_complete():
    replay(collective_program())


def swap_calls(events, first, second):
    """Exchange two (issue, wait) pairs that stand at these indices."""
    events = list(events)
    events[first : first + 2], events[second : second + 2] = events[second : second + 2], events[first : first + 2]
    return events


def test_ranks_that_differ_in_collective_order_are_named_with_their_first_divergent_calls():
    transcripts = collective_program()
    transcripts[3] = swap_calls(transcripts[3], 1, 3)
    expected = (
        r"ranks differ in collective order on tensor \(2, 3\), call 0: "
        r"rank 2 at event 1 calls all_gather attention.gather .*; "
        r"rank 3 at event 1 calls reduce_scatter attention.scatter"
    )
    with pytest.raises(ReplayError, match=expected):
        replay(transcripts)


@pytest.mark.parametrize("change", [{"bytes": 65}, {"site": "mlp.gather"}, {"operation": "all_reduce"}])
def test_a_collective_that_differs_on_one_rank_is_caught(change):
    transcripts = collective_program()
    transcripts[1][1] = replace(transcripts[1][1], **change)
    with pytest.raises(ReplayError, match=r"ranks differ in collective order on tensor \(0, 1\), call 0"):
        replay(transcripts)


def test_a_collective_that_one_rank_leaves_out_is_caught():
    transcripts = collective_program()
    del transcripts[2][-2:]
    with pytest.raises(ReplayError, match=r"on world .*, call 0: .*rank 2 calls nothing more"):
        replay(transcripts)


def test_collectives_in_opposite_order_on_two_communicators_deadlock_when_waited_at_once():
    first, second = Writer(0), Writer(1)
    connect((first, second), ("tensor", (0, 1)), ("data", (0, 1)))
    for axis in ("tensor", "data"):
        first.call("all_reduce", axis, (0, 1), "sum")
    for axis in ("data", "tensor"):
        second.call("all_reduce", axis, (0, 1), "sum")
    with pytest.raises(
        ReplayError, match=r"rank 0 at event 5 waits for all_reduce sum .* not at the head on ranks \[1\]"
    ):
        replay([first.events, second.events])


def test_a_missing_wait_is_caught():
    transcripts = collective_program()
    del transcripts[1][5]
    with pytest.raises(ReplayError, match=r"rank 1: missing wait for handle 1: all_gather unit.gather"):
        replay(transcripts)


def test_waiting_twice_and_waiting_for_nothing_are_caught():
    transcripts = collective_program()
    with pytest.raises(ReplayError, match="rank 0, event 8: waits a second time for handle 4"):
        replay([[*transcripts[0], transcripts[0][-1]], *transcripts[1:]])
    stranger = replace(transcripts[0][-1], handle=99)
    with pytest.raises(ReplayError, match="rank 0, event 8: waits for handle 99, which was never issued"):
        replay([[*transcripts[0], stranger], *transcripts[1:]])


def test_a_message_of_another_size_than_its_receive_is_caught():
    transcripts = pipeline_program(one_f_one_b(2, 1, 3))
    index = next(i for i, e in enumerate(transcripts[1]) if e.kind == "issue" and e.operation == "recv")
    transcripts[1][index] = replace(transcripts[1][index], bytes=32)
    with pytest.raises(ReplayError, match=r"size mismatch .* message 0: forward.send .* sends 64 bytes, .* 32 bytes"):
        replay(transcripts)


def test_a_send_that_nobody_receives_is_caught():
    transcripts = pipeline_program(SCHEDULES["gpipe"](2, 1, 2))
    lost = transcripts[1][0].handle
    transcripts[1] = [event for event in transcripts[1] if event.handle != lost]
    with pytest.raises(ReplayError, match=r"2 sends but 1 receives on forward 0-1"):
        replay(transcripts)


def test_a_batch_interrupted_by_another_call_is_caught():
    transcripts = ring(2, batched=True, steps=1)
    connected, (first, second, *waits) = transcripts[0][:4], transcripts[0][4:]
    other = Writer(0, issued=10)
    other.call("all_reduce", "data", (0,), "sum")
    with pytest.raises(ReplayError, match="batch 0 is not issued in one go"):
        replay([[*connected, first, *other.events, second, *waits], transcripts[1]])


def test_a_group_that_its_rank_is_not_in_is_caught():
    writer = Writer(0)
    writer.call("all_reduce", "data", (1, 2), "sum")
    with pytest.raises(ReplayError, match="rank 0 of 1 has no place in the group"):
        replay([writer.events])


def received_first(writers, connected: bool):
    """Two stages that post their receives before anything else, each on a channel of its own, as a pipeline's do."""
    first, second = writers
    forward, backward = ("pipeline.forward", (0, 1)), ("pipeline.backward", (0, 1))
    if connected:
        for channel, (sender, receiver) in ((forward, (first, second)), (backward, (second, first))):
            sender.call("send", *channel, "connect", peer=receiver.rank)
            receiver.call("recv", *channel, "connect", peer=sender.rank)
    gradient = first.issue("recv", *backward, "gradient", peer=1)
    activation = second.issue("recv", *forward, "activation", peer=0)
    first.call("send", *forward, "activation", peer=1)
    second.wait(activation)
    second.call("send", *backward, "gradient", peer=0)
    first.wait(gradient)
    return [first.events, second.events]


def test_stages_that_receive_first_on_channels_never_used_before_hold_each_other():
    held = (
        r"deadlock: rank 0 at event 0 is held by the first recv gradient .*, until ranks \[1\] come to theirs; "
        r"rank 1 at event 0 is held by the first recv activation .*, until ranks \[0\] come to theirs"
    )
    with pytest.raises(ReplayError, match=held):
        replay(received_first((Writer(0), Writer(1)), connected=False))


def test_the_same_stages_go_on_when_the_channels_were_connected_before():
    replay(received_first((Writer(0), Writer(1)), connected=True))


def test_groups_first_used_in_opposite_orders_hold_each_other():
    first, second = Writer(0), Writer(1)
    for writer, axes in ((first, ("tensor", "zero")), (second, ("zero", "tensor"))):
        handles = [writer.issue("all_reduce", axis, (0, 1), "sum") for axis in axes]
        for handle in handles:
            writer.wait(handle)
    with pytest.raises(ReplayError, match=r"rank 0 at event 0 is held by the first all_reduce sum \(tensor"):
        replay([first.events, second.events])


def test_the_first_message_between_two_ranks_of_a_group_in_use_holds_both():
    group = ("world", (0, 1, 2))
    writers = [Writer(rank) for rank in range(3)]
    for writer in writers:
        writer.call("all_reduce", *group, "connect")
    # 0 receives from 1, 1 from 2, 2 from 0, each before it sends: on pairs that have met it would do.
    handles = [writer.issue("recv", *group, "ring", peer=(writer.rank + 1) % 3) for writer in writers]
    for writer, handle in zip(writers, handles, strict=True):
        writer.call("send", *group, "ring", peer=(writer.rank - 1) % 3)
        writer.wait(handle)
    with pytest.raises(ReplayError, match=r"held by the first recv ring .* peer 1, 64 bytes\), until ranks \[1\]"):
        replay([writer.events for writer in writers])


def test_a_hundred_thousand_events_a_rank_are_replayed_in_seconds():
    transcripts = []
    for rank in range(2):
        writer = Writer(rank)
        for step in range(25_000):
            writer.events += [
                Event("issue", 2 * step, "tensor", (0, 1), "all_gather", "gather", 64),
                Event("issue", 2 * step + 1, "zero", (0, 1), "all_gather", "unit", 64),
                Event("wait", 2 * step, "tensor", (0, 1), "all_gather", "gather", 64),
                Event("wait", 2 * step + 1, "zero", (0, 1), "all_gather", "unit", 64),
            ]
        transcripts.append(writer.events)
    start = time.perf_counter()
    replay(transcripts)
    assert time.perf_counter() - start < 20
