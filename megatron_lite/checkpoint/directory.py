"""The names in a run's checkpoints directory, and which of them count.

step_N              complete
step_N.tmp          being written, or left by a crash; the next save removes it
step_N.removing     no longer wanted; the same
step_N.replaced     the former step_N, while a new one takes its place; counts until that stands
step_N.abandoned    later than the step that a run went back to; kept for the user, never resumed from
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from megatron_lite.checkpoint import files
from megatron_lite.checkpoint.index import INDEX

log = logging.getLogger("megatron_lite")


@dataclass(frozen=True, order=True)
class Candidate:
    """A directory that should be a complete checkpoint; ordered by age."""

    step: int
    current: bool  # False: step_N.replaced
    path: Path


def candidates(directory: Path) -> list[Candidate]:
    """Newest first. Empty where there is no such directory."""
    found = []
    for path in directory.iterdir() if directory.is_dir() else ():
        if match := re.fullmatch(r"step_(\d+)(\.replaced)?", path.name):
            found.append(Candidate(int(match[1]), match[2] is None, path))
    return sorted(found, reverse=True)


def named(path: Path) -> list[Path]:
    """The checkpoints that a user's path means, newest first: itself, or those of a checkpoints or run directory."""
    if (path / INDEX).is_file() or re.fullmatch(r"step_\d+", path.name):
        return [path]
    return [c.path for c in candidates(path / "checkpoints") or candidates(path)]


def tokenizer_directory(path: Path) -> Path:
    """Where the tokenizer lies that a user's path means: of a run, in its newest complete checkpoint; any other path is
    itself.
    """
    return next((one for one in named(path) if (one / INDEX).is_file()), path)


def clear_leftovers(directory: Path) -> None:
    """Remove what a crashed save left."""
    for path in sorted(directory.iterdir()):
        if re.fullmatch(r"step_\d+\.(tmp|removing)", path.name):
            files.remove_tree(path)


def publish(partial: Path, target: Path) -> None:
    """Give a written checkpoint its name. A complete one that it replaces counts until it stands."""
    replaced = target.with_name(f"{target.name}.replaced")
    if target.exists():
        if replaced.exists():
            discard(replaced)
        files.rename(target, replaced)
    files.rename(partial, target)
    if replaced.exists():
        discard(replaced)


def set_later_aside(directory: Path, step: int) -> None:
    """After going back to an older checkpoint, later ones belong to another history: resuming must not find them."""
    for candidate in candidates(directory):
        if candidate.step > step:
            aside = directory / f"step_{candidate.step}.abandoned"
            if aside.exists():
                discard(aside)
            files.rename(candidate.path, aside)
            log.warning("the run went back to before step %d; its former checkpoint is now %s", candidate.step, aside)


def prune(directory: Path, keep: int | None) -> None:
    """Remove all but the `keep` newest."""
    if keep is not None:
        for candidate in candidates(directory)[keep:]:
            discard(candidate.path)


def discard(path: Path) -> None:
    """Remove a checkpoint that, half removed, must not look like one."""
    doomed = path.with_name(f"{path.name.split('.')[0]}.removing")
    files.rename(path, doomed)
    files.remove_tree(doomed)
