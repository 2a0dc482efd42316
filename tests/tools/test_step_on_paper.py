"""The command line takes overrides wherever they stand, and its rows are those of each stage once."""

from tools.step_on_paper import parse_arguments, roles


def test_overrides_may_stand_before_and_after_options(monkeypatch):
    arguments = ["step_on_paper.py", "c.yaml", "a=1", "--world-size", "8", "b=2", "--recompute"]
    monkeypatch.setattr("sys.argv", arguments)
    options = parse_arguments()
    assert (options.config, options.overrides, options.world_size) == ("c.yaml", ["a=1", "b=2"], 8)
    assert options.recompute


def test_each_stage_has_one_row():
    assert roles(8) == {"first": 0, "middle": 4, "last": 7}
    assert list(roles(2).values()) == [0, 1]
    assert list(roles(1).values()) == [0]
