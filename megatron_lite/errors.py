"""The errors that users meet, their exit codes, and the one place that turns them into a line on stderr."""

import sys
from collections.abc import Callable


class MegatronLiteError(Exception):
    """An error whose message is one clear line: the thing, its value, and what would be right."""

    exit_code = 1


class UsageError(MegatronLiteError):
    """Bad usage or configuration."""

    exit_code = 2


class DataError(MegatronLiteError):
    """Bad data or a bad checkpoint."""

    exit_code = 3


def run_face(main: Callable[[], None]) -> None:
    """Run a command's main function: a MegatronLiteError becomes one line on stderr and its exit code.

    Any other exception goes on unchanged, so Python prints its traceback and exits with 1.
    """
    try:
        main()
    except MegatronLiteError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
