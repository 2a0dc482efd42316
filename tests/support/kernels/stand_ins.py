"""Modules that stand in for packages that cannot be installed here: their recorded signatures, and what a test puts
behind those. A call that the real function would not take is a TypeError here too.
"""

import json
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from inspect import Parameter, Signature
from pathlib import Path
from types import ModuleType

SIGNATURES = Path(__file__).parents[2] / "kernels" / "signatures"


def recorded(file: str) -> list[dict]:
    """Entries of tests/kernels/signatures: package, version, source, module, functions and their parameters."""
    return json.loads((SIGNATURES / f"{file}.json").read_text())


def signature_of(parameters: str, by_position: bool) -> Signature:
    """Of names divided by spaces; those that end in = may be left out."""
    kind = Parameter.POSITIONAL_ONLY if by_position else Parameter.POSITIONAL_OR_KEYWORD
    return Signature(
        Parameter(word.rstrip("="), kind, default=None if word.endswith("=") else Parameter.empty)
        for word in parameters.split()
    )


def stand_in(monkeypatch, entry: dict, behind: Mapping[str, Callable]) -> None:
    """Put a module with the entry's functions where it would be imported; `behind` gets their arguments by name."""
    *parents, _ = entry["module"].split(".")
    for name in (*parents, entry["module"]):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    for name, parameters in entry["functions"].items():
        signature = signature_of(parameters, by_position="by position" in entry["source"])
        setattr(module, name, _bound(signature, behind[name]))


def _bound(signature: Signature, function: Callable) -> Callable:
    def call(*arguments, **named):
        return function(**signature.bind(*arguments, **named).arguments)

    return call
