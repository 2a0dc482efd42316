"""How a server behaves: whom it listens to, and what it takes at most."""

from dataclasses import dataclass

from megatron_lite.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """`name` is the model's in the API.

    key             that requests must carry, None for none
    origins         of pages that may read answers in a browser
    queue           sequences that may wait, beside those that run
    prompt, output  tokens of one at most (None: as the model's longest sequence allows)
    body            bytes of a request at most
    header_seconds, body_seconds, unread_seconds
                    that a client has to send its headers, to send its body, to read what lies ready
    drain_seconds   that running requests have, once the server is told to end

    Raises UsageError for a bound that lets nothing through.
    """

    name: str
    key: str | None = None
    origins: tuple[str, ...] = ()
    queue: int = 256
    prompt: int | None = None
    output: int | None = None
    body: int = 2**21
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    unread_seconds: float = 30.0
    drain_seconds: float = 20.0

    def __post_init__(self) -> None:
        for name in ("prompt", "output", "body"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--max-{name} {value}: must be 1 or more")
        if self.queue < 0:
            raise UsageError(f"--queue {self.queue}: must be 0 or more")
        if self.drain_seconds < 0:
            raise UsageError(f"--drain {self.drain_seconds}: must be 0 seconds or more")
        if self.key is not None and (not self.key or not self.key.isascii() or not self.key.isprintable()):
            raise UsageError("--api-key: must be printable ASCII characters, one or more, as a header can carry them")
