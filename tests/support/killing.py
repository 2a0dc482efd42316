"""Processes that die by SIGKILL at a chosen step towards the disk."""

import os
import signal
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path


def killed_at(step: int, function: Callable[[], object]) -> bool:
    """Run `function` in a fork that kills itself before its step-th fsync, rename or removal of a file, from 0.

    Returns whether it was killed; False: it came to its end before that. Raises AssertionError where it failed.
    """
    child = os.fork()
    if child == 0:
        try:
            _die_before(step)
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or os.waitstatus_to_exitcode(status) == 0
    return killed


def _die_before(step: int) -> None:
    steps = 0

    def counted(original):
        def call(*arguments, **options):
            nonlocal steps
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1
            return original(*arguments, **options)

        return call

    os.fsync = counted(os.fsync)
    for name in ("replace", "rename", "unlink"):
        setattr(Path, name, counted(getattr(Path, name)))


class InlinePool:
    """An executor that does its work at once, in this process."""

    def submit(self, function: Callable, *arguments: object) -> Future:
        future = Future()
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_: object) -> None:
        pass

    def __enter__(self) -> "InlinePool":
        return self

    def __exit__(self, *_: object) -> None:
        pass
