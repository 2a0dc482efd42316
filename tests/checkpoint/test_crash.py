"""A save that ends anywhere, in any way, costs nothing that was complete before it."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.checkpoints import assert_same, owned, save_while_one_rank_cannot_write, spoil, whole
from support.layouts import Layout, build_trainer

from megatron_lite.checkpoint import files, find, load, open_checkpoint, save, state_tensors
from megatron_lite.checkpoint.directory import candidates
from megatron_lite.checkpoint.state import training_state

LAYOUT = Layout(layers=2, dtype="float32")
CHANGES = (
    "make_directory",
    "write_tensors",
    "write_bytes",
    "write_json",
    "remove_file",
    "rename",
    "remove_tree",
    "sync",
)


class Crash(BaseException):
    """The program's end, as seen from inside."""


class Machine:
    """Counts the changes to the file system and stops the program at one of them: before it, or half way through."""

    def __init__(self, monkeypatch, stop_at: int | None = None, half: bool = False):
        self.log: list[str] = []
        for name in CHANGES:
            monkeypatch.setattr(files, name, self._counted(name, getattr(files, name), stop_at, half))

    def _counted(self, name, original, stop_at, half):
        def call(path: Path, *arguments):
            self.log.append(name)
            if len(self.log) - 1 == stop_at:
                if half:
                    _half(name, original, path, *arguments)
                raise Crash(name)
            return original(path, *arguments)

        return call


def _half(name, original, path: Path, *arguments) -> None:
    """A write leaves half of its bytes, a removal half of its files; the rest happen at once."""
    if name.startswith("write_"):
        original(path, *arguments)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif name == "remove_tree":
        inside = sorted(path.iterdir())
        for file in inside[: (len(inside) + 1) // 2]:
            file.unlink()
    elif name != "sync":
        original(path, *arguments)


def mark(trainer, step: int) -> None:
    """Make the state say which step it is."""
    for shards, flats in training_state(trainer):
        for number, flat in enumerate(flats.values()):
            flat.fill_(step + number / 4)
        shards.refresh()


def saved(directory: Path, trainer, step: int) -> None:
    mark(trainer, step)
    trainer.optimizer.updates = step
    save(directory, trainer, step, 12 * step, tensors={"step": torch.tensor(step)})


def newest(directory: Path, trainer) -> int:
    """Load the newest; the step it says must be the one that all of its tensors say."""
    spoil(trainer)
    checkpoint = find(directory, "auto", trainer.mesh)
    progress = load(checkpoint, trainer)
    assert state_tensors(checkpoint)["step"].item() == progress.step
    found = whole([owned(trainer)])
    mark(trainer, progress.step)
    assert_same(found, whole([owned(trainer)]))
    assert trainer.optimizer.updates == progress.step and progress.samples == 12 * progress.step
    return progress.step


def keeping(keep: int | None):
    config = LAYOUT.config()
    checkpoint = config.checkpoint.model_copy(update={"keep": keep})
    return build_trainer(LAYOUT, config=config.model_copy(update={"checkpoint": checkpoint}))


@pytest.fixture
def trainer():
    return keeping(1)


SCENES = {
    "a new step": (range(1, 3), 3),
    "the same step again": (range(1, 3), 2),
    "an older step": (range(1, 4), 2),
    "after a crash": (range(1, 3), 3),
}


def prepare(scene: str, directory: Path, trainer, monkeypatch) -> tuple[int, int]:
    """Saves before the one that crashes; returns the last good step and the step to save."""
    steps, step = SCENES[scene]
    for before in steps:
        saved(directory, trainer, before)
    if scene == "after a crash":
        with monkeypatch.context() as patch, pytest.raises(Crash):
            Machine(patch, stop_at=6)
            saved(directory, trainer, step)
        assert (directory / "step_3.tmp").exists()
    return steps[-1], step


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("half", [False, True], ids=["before", "half-way"])
def test_a_crash_at_any_change_of_the_file_system_leaves_a_whole_checkpoint(
    tmp_path, monkeypatch, trainer, scene, half
):
    start = tmp_path / "start"
    good, step = prepare(scene, start, trainer, monkeypatch)
    with monkeypatch.context() as patch:
        shutil.copytree(start, tmp_path / "count")
        machine = Machine(patch)
        saved(tmp_path / "count", trainer, step)
    assert {"make_directory", "write_tensors", "write_json", "rename", "sync"} <= set(machine.log)

    for stop_at in range(len(machine.log)):
        directory = tmp_path / f"run{stop_at}"
        shutil.copytree(start, directory)
        with monkeypatch.context() as patch, pytest.raises(Crash):
            Machine(patch, stop_at, half)
            saved(directory, trainer, step)
        assert newest(directory, trainer) in {good, step}
        for candidate in candidates(directory):
            open_checkpoint(candidate.path, trainer.mesh)

        saved(directory, trainer, good + 2)
        assert newest(directory, trainer) == good + 2
        left = {path.name for path in directory.iterdir()} - {f"step_{good}.abandoned"}
        assert left == {f"step_{good + 2}"}, f"a crash at {stop_at} ({machine.log[stop_at]}) leaves {left}"
        shutil.rmtree(directory)


def test_the_newest_are_kept_and_the_old_go(tmp_path):
    trainer = keeping(2)
    for step in (5, 9, 10, 100):
        saved(tmp_path, trainer, step)
    assert {path.name for path in tmp_path.iterdir()} == {"step_10", "step_100"}


def test_keep_null_keeps_all(tmp_path):
    trainer = keeping(None)
    for step in range(1, 6):
        saved(tmp_path, trainer, step)
    assert len(list(tmp_path.iterdir())) == 5


def test_after_going_back_the_later_checkpoint_is_set_aside_not_resumed_and_not_lost(tmp_path, caplog):
    trainer = keeping(3)
    for step in (1, 2, 3):
        saved(tmp_path, trainer, step)
    load(find(tmp_path, str(tmp_path / "step_1"), trainer.mesh), trainer)
    saved(tmp_path, trainer, 2)
    assert newest(tmp_path, trainer) == 2
    assert (tmp_path / "step_3.abandoned" / "index.json").exists()
    assert "step_3.abandoned" in caplog.text


def test_a_full_disk_under_one_rank_is_every_ranks_error_and_keeps_the_last_good_one(ranks, tmp_path):
    errors = ranks.run(save_while_one_rank_cannot_write, 2, Layout(data=2, layers=2), tmp_path)
    assert errors[0] == errors[1]
    assert "No space left on device" in errors[0] and "(rank 1)" in errors[0]
    assert (tmp_path / "step_1").exists() and not (tmp_path / "step_2").exists()


def save_without_end(directory: str) -> None:
    """Run by the test below in a process of its own: says each step that was saved."""
    trainer = keeping(1)
    step = 0
    while True:
        step += 1
        saved(Path(directory), trainer, step)
        os.write(1, f"{step}\n".encode())


def test_a_process_killed_while_saving_loses_nothing_it_had_saved(tmp_path, trainer):
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests / "checkpoint")]
    code = f"import sys; sys.path[:0] = {paths}; import test_crash; test_crash.save_without_end({{!r}})"
    rng = random.Random(0)
    victims = []
    for trial in range(2):
        directory = tmp_path / str(trial)
        program = code.format(str(directory))
        victims.append((directory, subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)))
    for directory, process in victims:
        first = int(process.stdout.readline())
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        said = [first, *map(int, process.stdout.read().split())]
        process.wait()
        assert newest(directory, trainer) in {said[-1], said[-1] + 1}
