"""How far a long step is: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from datetime import timedelta

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Use in a `with` statement and call `advance` as bytes, or things of another `unit`, are done; `done_before` of
    them in an earlier run.
    """

    def __init__(self, title: str, total: int, done_before: int = 0, unit: str = "B"):
        self.title, self.total = title, total
        self._done_before = done_before
        self._started = self._last_line = time.monotonic()
        # tqdm draws nothing where stderr is no terminal.
        self._bar = tqdm(
            total=total,
            initial=done_before,
            desc=title,
            unit=unit,
            unit_scale=True,
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, position: int, note: str = "") -> None:
        """`position` of the total are done; `note` says what has come of them."""
        if not self._bar.disable:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(position - self._bar.n)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            percent = 100 * position / max(self.total, 1)
            print(f"{self.title}: {percent:.0f} %, {self._remaining(position)}{note}", file=sys.stderr, flush=True)

    def _remaining(self, position: int) -> str:
        """How long it will take at the rate so far."""
        done = position - self._done_before
        if done <= 0:
            return ""
        seconds = (time.monotonic() - self._started) / done * (self.total - position)
        return f"about {timedelta(seconds=round(seconds))} left, "
