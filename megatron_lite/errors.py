"""The errors that users meet, their exit codes, and the one place that turns them into a line on stderr."""

import os
import sys
import time
from collections.abc import Callable

from megatron_lite.place import find_place

PATIENCE = 10.0  # seconds that a rank leaves to its node's first one to say what is wrong with both


class MegatronLiteError(Exception):
    """An error whose message is one clear line: the thing, its value, and what would be right."""

    exit_code = 1


class UsageError(MegatronLiteError):
    """Bad usage or configuration."""

    exit_code = 2


class DataError(MegatronLiteError):
    """Bad data or a bad checkpoint."""

    exit_code = 3


def run_command(main: Callable[[], None]) -> None:
    """Run a command's main function: a MegatronLiteError becomes one line on stderr and its exit code.

    In a job of several ranks each node's first one speaks; another waits, for torchrun to end it when that one is gone,
    and speaks when it was not. Any other exception goes on unchanged, so Python prints its traceback and exits with 1.
    """
    try:
        main()
    except MegatronLiteError as error:
        place = find_place()
        if not place.first_on_node:
            time.sleep(PATIENCE)
        print(f"error: {error}", file=sys.stderr, flush=True)
        if place.world_size > 1:
            sys.stdout.flush()
            os._exit(error.exit_code)  # threads of process groups, of which others are gone, would keep it waiting
        sys.exit(error.exit_code)
