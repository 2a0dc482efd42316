"""Valid schedules pass with the peak of the closed form; broken ones are refused for what is wrong with them."""

import math
import time
from dataclasses import replace

import pytest

from megatron_lite.parallel.pipeline.checker import ScheduleError, check, execution_order
from megatron_lite.parallel.pipeline.schedules import (
    SCHEDULES,
    Action,
    Placement,
    Schedule,
    gpipe,
    interleaved_1f1b,
    one_f_one_b,
    split_backward,
    zb_h1,
    zb_v,
)

GRID = [(stages, microbatches) for stages in (1, 2, 3, 4, 8) for microbatches in (1, 2, 3, 4, 7, 8, 16)]


def parse(*rows, chunks=1):
    """A schedule from text: "F0 B0" or, with chunks, "F0.1"."""
    schedule = []
    for row in rows:
        numbers = [(name[0], *map(int, name[1:].split("."))) for name in row.split()]
        schedule.append(tuple(Action(*number) for number in numbers))
    return Schedule(tuple(schedule), Placement(len(rows), chunks))


@pytest.mark.parametrize(("stages", "microbatches"), GRID)
def test_gpipe_keeps_every_microbatch_alive(stages, microbatches):
    assert check(gpipe(stages, 1, microbatches), microbatches).peak_live == (microbatches,) * stages


@pytest.mark.parametrize(("stages", "microbatches"), GRID)
def test_1f1b_keeps_alive_one_microbatch_a_stage_still_to_come(stages, microbatches):
    expected = tuple(min(stages - stage, microbatches) for stage in range(stages))
    assert check(one_f_one_b(stages, 1, microbatches), microbatches).peak_live == expected


@pytest.mark.parametrize("delay", [0, 1, 2, 3, 6, 1000])
@pytest.mark.parametrize(("stages", "microbatches"), GRID)
def test_split_1f1b_keeps_alive_half_the_delay_more(stages, microbatches, delay):
    schedule = split_backward(one_f_one_b(stages, 1, microbatches), delay)
    expected = tuple(min(stages - stage + math.ceil(delay / 2), microbatches) for stage in range(stages))
    assert check(schedule, microbatches).peak_live == expected


@pytest.mark.parametrize(("stages", "microbatches"), GRID)
def test_every_microbatch_crosses_every_edge_once_each_way(stages, microbatches):
    assert check(gpipe(stages, 1, microbatches), microbatches).messages == 2 * (stages - 1) * microbatches


def test_chunks_go_round_the_stages():
    schedule = parse("F0 F0.1 B0.1 B0", "F0 F0.1 B0.1 B0", chunks=2)
    assert check(schedule, 1).peak_live == (2, 2)
    assert check(schedule, 1).messages == 6  # three hops between four virtual stages, each way


def test_chunks_on_one_stage_send_no_messages():
    assert check(parse("F0 F0.1 B0.1 B0", chunks=2), 1).messages == 0


BROKEN = {
    "missing forward": (("F0 B0 B1", "F0 B0 F1 B1"), "stage 0: F1 appears 0 times"),
    "missing backward": (("F0 F1 B0 B1", "F0 B0 F1"), "stage 1: B1 appears 0 times"),
    "duplicated": (("F0 F1 B0 B1 B1", "F0 B0 F1 B1"), "stage 0: B1 appears 2 times"),
    "whole and split backward": (("F0 F1 B0 B1", "F0 B0 I0 W0 F1 B1"), "stage 1: B0 appears 1 times, must appear 0"),
    "input without weight gradient": (("F0 F1 I0 I1 W1", "F0 B0 F1 B1"), "stage 0: W0 appears 0 times"),
    "microbatch out of range": (("F0 F1 F2 B0 B1 B2", "F0 B0 F1 B1"), "stage 0: F2 is outside 2 microbatches"),
    "chunk out of range": (("F0 F1 F0.1 B0 B1", "F0 B0 F1 B1"), "stage 0: F0.1 is outside .* 1 chunks"),
    "unknown kind": (("F0 F1 B0 B1", "F0 B0 F1 B1 X0"), "stage 1: action kind 'X'"),
    "swapped on a stage": (("F0 F1 B0 B1", "B0 F0 F1 B1"), "stage 1: B0 comes before F0"),
    "weight before input gradient": (("F0 F1 W0 I0 B1", "F0 B0 F1 B1"), "stage 0: W0 comes before I0"),
    "opposite orders": (
        ("F0 B0 F1 B1", "F1 B1 F0 B0"),
        "deadlock with sends that never wait: stage 0 at B0 waits for B0 of stage 1; stage 1 at F1 waits for F1 of sta",
    ),
    "received in another order": (
        ("F0 F1 B1 B0", "F1 F0 B0 B1"),
        "forward messages from stage 0 to stage 1: number 0 is sent for microbatch 0 .* received for microbatch 1",
    ),
    "gradients in another order": (
        ("F0 F1 B0 B1", "F0 F1 B1 B0"),
        "backward messages from stage 1 to stage 0: number 0 is sent for microbatch 1",
    ),
    "needs more than one message on a channel": (
        ("F0 F1 F2 F3 B0 B1 B2 B3", "F0 B0 F1 B1 F2 B2 F3 B3"),
        "deadlock with sends that wait for their receive: stage 0 at F3 waits for stage 1 to receive",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_schedule_is_refused_for_its_fault(name):
    rows, message = BROKEN[name]
    microbatches = 4 if "F3" in rows[0] else 2
    with pytest.raises(ScheduleError, match=message):
        check(parse(*rows), microbatches)


ALL = {"gpipe": 1, "1f1b": 1, "interleaved_1f1b": 2, "zb_h1": 1, "zb_v": 2}


@pytest.mark.parametrize(("name", "chunks"), ALL.items())
def test_any_single_action_removed_is_refused(name, chunks):
    whole = SCHEDULES[name](3, chunks, 3)
    for stage, row in enumerate(whole.actions):
        for index, gone in enumerate(row):
            broken = (*whole.actions[:stage], row[:index] + row[index + 1 :], *whole.actions[stage + 1 :])
            with pytest.raises(ScheduleError, match=rf"stage {stage}: {gone} appears 0 times"):
                check(replace(whole, actions=broken), 3)


@pytest.mark.parametrize("stages", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("chunks", [2, 3, 4])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_interleaved_keeps_alive_its_warmup_and_one_chunk_more(stages, chunks, groups):
    microbatches = groups * stages
    warmups = [(chunks - 1) * stages + 2 * (stages - stage - 1) for stage in range(stages)]
    expected = tuple(min(warmup + 1, chunks * microbatches) for warmup in warmups)
    assert check(interleaved_1f1b(stages, chunks, microbatches), microbatches).peak_live == expected


@pytest.mark.parametrize(("stages", "microbatches"), GRID)
def test_zb_h1_keeps_alive_what_1f1b_does_on_its_first_stage(stages, microbatches):
    assert check(zb_h1(stages, 1, microbatches), microbatches).peak_live == (min(stages, microbatches),) * stages


@pytest.mark.parametrize(("stages", "microbatches"), GRID)
def test_zb_v_keeps_alive_at_most_two_chunks_a_stage_of_the_pipeline(stages, microbatches):
    peak = check(zb_v(stages, 2, microbatches), microbatches).peak_live
    assert max(peak) <= 2 * min(stages, microbatches)
    if microbatches >= 2 * stages - 1:
        assert peak == (2 * stages,) * stages


def test_virtual_stages_lie_round_the_stages_or_down_and_up_again():
    for order, expected in (("round", [[0, 1, 2], [3, 4, 5]]), ("vee", [[0, 1, 2], [5, 4, 3]])):
        placement = Placement(3, 2, order)
        assert [[placement.virtual_stage(stage, chunk) for stage in range(3)] for chunk in range(2)] == expected


@pytest.mark.parametrize("placement", [Placement(4), Placement(3, 3), Placement(4, 2, "vee"), Placement(1, 2)])
def test_a_place_is_its_virtual_stages_and_the_model_has_two_ends(placement):
    for number in range(placement.stages * placement.chunks):
        assert placement.virtual_stage(*placement.place(number)) == number
    assert placement.place(-1) is placement.place(placement.stages * placement.chunks) is None


@pytest.mark.parametrize(("name", "chunks"), ALL.items())
@pytest.mark.parametrize(("stages", "groups"), [(1, 4), (2, 3), (4, 2), (8, 1), (8, 4)])
def test_forwards_alone_end_too_whatever_the_channels_hold(name, chunks, stages, groups):
    whole = SCHEDULES[name](stages, chunks, groups * stages)
    forwards = replace(whole, actions=tuple(tuple(a for a in row if a.kind == "F") for row in whole.actions))
    for limit in (None, 1):
        assert len(list(execution_order(forwards, limit))) == chunks * stages * groups * stages


class Scattered(Placement):
    """Pieces on stages that are no neighbours on the pipeline axis."""

    ORDER = (0, 2, 4, 1, 3)

    def virtual_stage(self, stage, chunk):
        return self.ORDER.index(stage)

    def place(self, number):
        return (self.ORDER[number], 0) if 0 <= number < self.stages else None


def test_virtual_stages_may_lie_on_stages_in_any_order():
    scattered = replace(SCHEDULES["gpipe"](5, 1, 3), placement=Scattered(5))
    assert check(scattered, 3).messages == 2 * 4 * 3


@pytest.mark.parametrize(("name", "chunks"), ALL.items())
def test_64_stages_and_512_microbatches_are_checked_in_seconds(name, chunks):
    start = time.perf_counter()
    check(SCHEDULES[name](64, chunks, 512), 512)
    assert time.perf_counter() - start < 20
