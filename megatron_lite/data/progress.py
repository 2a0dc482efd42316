"""How far a long step is: a bar on a terminal, a plain line now and then in a log."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Use in a `with` statement and call `advance` as bytes are done."""

    def __init__(self, title: str, total_bytes: int):
        self.title, self.total = title, total_bytes
        self._last_line = time.monotonic()
        # tqdm draws nothing where stderr is no terminal.
        self._bar = tqdm(total=total_bytes, desc=title, unit="B", unit_scale=True, disable=not sys.stderr.isatty())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, position: int, note: str = "") -> None:
        """`position` bytes of the total are done; `note` says what has come of them."""
        if not self._bar.disable:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(position - self._bar.n)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            print(f"{self.title}: {100 * position / max(self.total, 1):.0f} % {note}", file=sys.stderr, flush=True)
