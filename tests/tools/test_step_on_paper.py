"""The command line takes overrides wherever they stand, its rows are those of each stage once, and it names kernels."""

import pytest

from megatron_lite.errors import UsageError
from megatron_lite.model import model
from tools.step_on_paper import main, parse_arguments, roles

CONFIG = """
model: {preset: nano}
parallel: {pipeline: 2}
optim: {lr: 1e-3}
train: {steps: 1, global_batch_size: 8, sequence_length: 32, run_dir: unused}
"""


def test_overrides_may_stand_before_and_after_options(monkeypatch):
    arguments = ["step_on_paper.py", "c.yaml", "a=1", "--world-size", "8", "b=2", "--recompute"]
    monkeypatch.setattr("sys.argv", arguments)
    options = parse_arguments()
    assert (options.config, options.overrides, options.world_size) == ("c.yaml", ["a=1", "b=2"], (8,))
    assert options.recompute


def test_each_stage_has_one_row():
    assert roles(8) == {"first": 0, "middle": 4, "last": 7}
    assert list(roles(2).values()) == [0, 1]
    assert list(roles(1).values()) == [0]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ("triton", "triton", "auto, on cuda")),
        (["kernels.attention=sdpa"], ("triton", "sdpa", "auto, on cuda")),
        (["kernels.backend=torch", "--phases"], ("torch", "sdpa", "kernels.backend asks for it")),
    ],
)
def test_the_first_line_is_the_choice_of_kernels_that_the_step_ran_with(
    tmp_path, monkeypatch, capsys, overrides, expected
):
    ran, kernels_of = [], model.kernels_of
    monkeypatch.setattr(model, "kernels_of", lambda choice: ran.append(choice) or kernels_of(choice))
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    monkeypatch.setattr("sys.argv", ["step_on_paper.py", str(path), "--world-size", "4", *overrides])
    main()
    first, second, blank, table, *_ = capsys.readouterr().out.splitlines()
    assert {first} == set(map(str, ran))
    assert (ran[0].backend, ran[0].attention, ran[0].why) == expected
    assert second.startswith("zero_regather: auto takes step: ")
    assert (blank, table[0]) == ("", "|")


@pytest.mark.parametrize(("gibibytes", "chosen"), [("1", "step"), ("0.001", "microbatch")])
def test_auto_runs_as_what_it_becomes_on_devices_of_the_given_memory(tmp_path, monkeypatch, capsys, gibibytes, chosen):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    tables = []
    for override in ("auto", chosen):
        override = f"parallel.zero_regather={override}"
        monkeypatch.setattr("sys.argv", ["s", str(path), override, "--world-size", "4", "--device-memory", gibibytes])
        main()
        tables.append(capsys.readouterr().out)
    assert f"zero_regather: auto takes {chosen}: step needs " in tables[0]
    assert tables[0] == tables[1]


def test_kernels_that_cannot_be_had_are_a_usage_error(tmp_path, monkeypatch):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    monkeypatch.setattr("sys.argv", ["s", str(path), "kernels.attention=flash_attn", "--world-size", "4"])
    with pytest.raises(UsageError, match=r"kernels\.attention = flash_attn: flash-attn is not installed here"):
        main()


def test_decode_shows_layouts_of_the_tensor_ranks_times_powers_of_two(tmp_path, monkeypatch, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    monkeypatch.setattr("sys.argv", ["s", str(path), "parallel.tensor=2", "--world-size", "23", "--decode"])
    main()
    first, blank, _, _, *rows = capsys.readouterr().out.splitlines()
    assert (first.partition(":")[0], blank) == ("computed, not measured", "")
    assert [[cell.strip() for cell in row.split("|")[1:3]] for row in rows] == [
        ["2", "tensor 2"],
        ["4", "tensor 2 x pipeline 2"],
        ["4", "tensor 2 x data 2"],
        ["8", "tensor 2 x pipeline 4"],
        ["8", "tensor 2 x pipeline 2 x data 2"],
        ["8", "tensor 2 x data 4"],
        ["16", "tensor 2 x pipeline 4 x data 2"],  # the model has four layers
        ["16", "tensor 2 x pipeline 2 x data 4"],
        ["16", "tensor 2 x data 8"],
    ]
    monkeypatch.setattr("sys.argv", ["s", str(path), "parallel.tensor=2", "--world-size", "1", "--decode"])
    with pytest.raises(UsageError, match=r"--world-size 1: must be at least parallel\.tensor = 2"):
        main()
