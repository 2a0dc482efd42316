"""The schedules' orders, written out by hand, and the split of their backwards."""

import pytest

from megatron_lite.parallel.pipeline.schedules import (
    SCHEDULES,
    Action,
    gpipe,
    interleaved_1f1b,
    one_f_one_b,
    split_backward,
    zb_h1,
    zb_v,
)


def text(actions):
    return " ".join(map(str, actions))


def test_gpipe_runs_all_forwards_then_all_backwards():
    assert [text(row) for row in gpipe(2, 1, 3).actions] == ["F0 F1 F2 B0 B1 B2"] * 2


def test_1f1b_is_the_order_of_its_paper():
    assert [text(row) for row in one_f_one_b(3, 1, 4).actions] == [
        "F0 F1 F2 B0 F3 B1 B2 B3",
        "F0 F1 B0 F2 B1 F3 B2 B3",
        "F0 B0 F1 B1 F2 B2 F3 B3",
    ]


def test_1f1b_with_fewer_microbatches_than_stages_never_runs_a_missing_microbatch():
    assert [text(row) for row in one_f_one_b(4, 1, 2).actions] == ["F0 F1 B0 B1"] * 3 + ["F0 B0 F1 B1"]


@pytest.mark.parametrize(
    ("delay", "expected"),
    [
        (0, "F0 F1 I0 W0 F2 I1 W1 F3 I2 W2 I3 W3"),
        (1, "F0 F1 I0 F2 W0 I1 F3 W1 I2 I3 W2 W3"),
        (2, "F0 F1 I0 F2 I1 W0 F3 I2 W1 I3 W2 W3"),
        (99, "F0 F1 I0 F2 I1 F3 I2 I3 W0 W1 W2 W3"),
    ],
)
def test_split_backward_puts_each_weight_gradient_the_delay_after_its_input_gradient(delay, expected):
    assert text(split_backward(one_f_one_b(3, 1, 4), delay).actions[1]) == expected


def test_an_action_of_a_further_chunk_is_written_with_its_chunk():
    assert str(Action("F", 3, chunk=2)) == "F3.2"


def test_interleaved_is_the_order_of_its_paper():
    assert [text(row) for row in interleaved_1f1b(2, 2, 4).actions] == [
        "F0 F1 F0.1 F1.1 F2 B0.1 F3 B1.1 F2.1 B0 F3.1 B1 B2.1 B3.1 B2 B3",
        "F0 F1 F0.1 B0.1 F1.1 B1.1 F2 B0 F3 B1 F2.1 B2.1 F3.1 B3.1 B2 B3",
    ]
    assert one_f_one_b(2, 2, 4) == interleaved_1f1b(2, 2, 4)


def test_zb_h1_puts_off_weight_gradients_by_as_many_microbatches_as_stages_came_before():
    assert [text(row) for row in zb_h1(3, 1, 4).actions] == [
        "F0 F1 F2 I0 W0 F3 I1 W1 I2 W2 I3 W3",
        "F0 F1 I0 F2 I1 W0 F3 I2 W1 I3 W2 W3",
        "F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3",
    ]


def test_zb_v_is_the_order_of_its_phases():
    assert [text(row) for row in zb_v(2, 2, 4).actions] == [
        "F0 F1 F2 F0.1 I0.1 W0.1 F1.1 I1.1 W1.1 F3 I0 W0 F2.1 I2.1 W2.1 I1 W1 F3.1 I3.1 W3.1 I2 W2 I3 W3",
        "F0 F0.1 F1 F1.1 I0.1 W0.1 F2 I0 W0 F2.1 I1.1 W1.1 F3 I1 W1 F3.1 I2.1 W2.1 I2 I3.1 I3 W2 W3.1 W3",
    ]


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        *((name, (2, 5, 4), "chunks is 5") for name in ("gpipe", "zb_h1", "zb_v")),
        *((name, (0, 1, 4), "stages is 0") for name in ("gpipe", "1f1b", "zb_h1")),
        *((name, (2, 1, 0), "microbatches is 0") for name in ("gpipe", "1f1b", "zb_h1")),
        ("zb_v", (0, 2, 4), "stages is 0"),
        ("interleaved_1f1b", (2, 1, 4), "chunks is 1"),
        ("interleaved_1f1b", (0, 2, 4), "stages is 0"),
        ("interleaved_1f1b", (2, 2, 3), "microbatches is 3; .* a multiple of 2"),
        ("1f1b", (2, 2, 3), "microbatches is 3; .* a multiple of 2"),
    ],
)
def test_sizes_that_a_schedule_cannot_have_are_refused_by_name(name, arguments, named):
    with pytest.raises(ValueError, match=named):
        SCHEDULES[name](*arguments)


def test_a_negative_delay_is_refused():
    with pytest.raises(ValueError, match="delay is -1"):
        split_backward(gpipe(1, 1, 1), -1)
