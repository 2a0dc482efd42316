"""Faults planted in a kernel's source, one at a time: what a test says of them shows whether it can fail."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


@contextmanager
def planted(module: ModuleType, kernel: str, right: str, wrong: str, folder: Path) -> Iterator[None]:
    """Inside, the module's interpreted function `kernel` has `wrong` in place of each `right` of its source.

    The source goes into a file in `folder`, where Triton reads it. Raises AssertionError where there is no `right`.
    """
    whole = getattr(module, kernel)
    source = inspect.getsource(whole.fn)
    assert right in source, f"{kernel} has no {right}"
    path = folder / f"{kernel}.py"
    path.write_text(source.replace(right, wrong), encoding="utf-8")
    names = dict(vars(module))
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    setattr(module, kernel, names[kernel])
    try:
        yield
    finally:
        setattr(module, kernel, whole)
