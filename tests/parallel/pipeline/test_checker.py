"""Valid schedules pass with the peak of the closed form; broken ones are refused for what is wrong with them."""

import math
import time

import pytest

from megatron_lite.parallel.pipeline.checker import ScheduleError, check
from megatron_lite.parallel.pipeline.schedules import Action, gpipe, one_f_one_b, split_backward

GRID = [(stages, microbatches) for stages in (1, 2, 3, 4, 8) for microbatches in (1, 2, 3, 4, 7, 8, 16)]


def parse(*rows):
    """A schedule from text: "F0 B0" or, with chunks, "F0.1"."""
    schedule = []
    for row in rows:
        numbers = [(name[0], *map(int, name[1:].split("."))) for name in row.split()]
        schedule.append(tuple(Action(*number) for number in numbers))
    return tuple(schedule)


@pytest.mark.parametrize(("stages", "microbatches"), GRID)
def test_gpipe_keeps_every_microbatch_alive(stages, microbatches):
    assert check(gpipe(stages, 1, microbatches), 1, microbatches).peak_live == (microbatches,) * stages


@pytest.mark.parametrize(("stages", "microbatches"), GRID)
def test_1f1b_keeps_alive_one_microbatch_a_stage_still_to_come(stages, microbatches):
    expected = tuple(min(stages - stage, microbatches) for stage in range(stages))
    assert check(one_f_one_b(stages, 1, microbatches), 1, microbatches).peak_live == expected


@pytest.mark.parametrize("delay", [0, 1, 2, 3, 6, 1000])
@pytest.mark.parametrize(("stages", "microbatches"), GRID)
def test_split_1f1b_keeps_alive_half_the_delay_more(stages, microbatches, delay):
    schedule = split_backward(one_f_one_b(stages, 1, microbatches), delay)
    expected = tuple(min(stages - stage + math.ceil(delay / 2), microbatches) for stage in range(stages))
    assert check(schedule, 1, microbatches).peak_live == expected


@pytest.mark.parametrize(("stages", "microbatches"), GRID)
def test_every_microbatch_crosses_every_edge_once_each_way(stages, microbatches):
    assert check(gpipe(stages, 1, microbatches), 1, microbatches).messages == 2 * (stages - 1) * microbatches


def test_chunks_go_round_the_stages():
    schedule = parse("F0 F0.1 B0.1 B0", "F0 F0.1 B0.1 B0")
    assert check(schedule, 2, 1).peak_live == (2, 2)
    assert check(schedule, 2, 1).messages == 6  # three hops between four pieces, each way


def test_chunks_on_one_stage_send_no_messages():
    assert check(parse("F0 F0.1 B0.1 B0"), 2, 1).messages == 0


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
        check(parse(*rows), 1, microbatches)


@pytest.mark.parametrize("build", [gpipe, one_f_one_b])
def test_any_single_action_removed_is_refused(build):
    whole = build(3, 1, 4)
    for stage, row in enumerate(whole):
        for index in range(len(row)):
            broken = (*whole[:stage], row[:index] + row[index + 1 :], *whole[stage + 1 :])
            with pytest.raises(ScheduleError, match=rf"stage {stage}: {row[index]} appears 0 times"):
                check(broken, 1, 4)


def test_64_stages_and_512_microbatches_are_checked_in_seconds():
    start = time.perf_counter()
    check(split_backward(one_f_one_b(64, 1, 512), 8), 1, 512)
    assert time.perf_counter() - start < 10
