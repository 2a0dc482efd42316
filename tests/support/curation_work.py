"""Small works for tests of the engine: top-level and picklable, as workers need them."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from megatron_lite.curation.engine import Outputs, Task
from megatron_lite.errors import DataError


@dataclass(frozen=True)
class Copy:
    """Writes its inputs' bytes, in capitals where asked, and leaves a line in `log` each time it runs."""

    version: ClassVar[int] = 1

    log: str
    capitals: bool = False

    def __call__(self, task: Task, outputs: Outputs) -> dict:
        with Path(self.log).open("a") as file:
            file.write(f"{task.name}\n")
        text = b"".join(Path(one.path).read_bytes() for one in task.inputs)
        outputs.path("copies", ".txt").write_bytes(text.upper() if self.capitals else text)
        outputs.path("lengths", ".txt").write_text(str(len(text)))
        return {"bytes": len(text)}


@dataclass(frozen=True)
class Misbehave:
    """Does what its task's argument says."""

    version: ClassVar[int] = 1

    def __call__(self, task: Task, outputs: Outputs) -> dict:
        outputs.path("half", ".txt").write_text("half")
        match task.argument:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(7)
            case "bad data":
                raise DataError("shard 3: no good")
            case "bug":
                raise ZeroDivisionError("a bug")
            case "no memory":
                raise MemoryError
            case "full":
                raise OSError(28, "No space left on device", "x")
        time.sleep(0.05)
        return {"pid": os.getpid()}
