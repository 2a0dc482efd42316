"""Worker processes: what keeps one from outliving its parent."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Make this worker exit when its parent is gone; killed by force, the parent could not tell it to."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
