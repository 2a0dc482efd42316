"""Planted faults: each call site that communicates, each division that normalizes, each product with a mask, one at a
time.

A message's mutation keeps every shape and every rank's order of calls, and leaves out what the others would have
contributed. A division's mutation compiles its function again with the quotient doubled, a mask's without the mask, and
puts that code in place. All act in the ranks' processes only, so the truth that they are compared with is untouched.
"""

import ast
import importlib
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import megatron_lite.kernels

import megatron_lite
from megatron_lite.parallel.collectives import Communicator, Handle

PACKAGE = Path(megatron_lite.__file__).parent
KERNELS = Path(megatron_lite.kernels.__file__).parent  # setup.py maps them into the package
# The rooms that make a training step, and those that generate.
STEP_ROOMS = ("alignment", "model", "optim", "parallel", "training")
GENERATING_ROOMS = ("inference",)
# Rooms without a call site, or whose messages are text that is right or cannot be read.
OTHER_ROOMS = {
    "checkpoint": "ranks agree by words",
    "config": "a single process",
    "curation": "processes without a mesh",
    "data": "a rank and a number of ranks",
    "evaluation": "ranks hand out requests by words",
    "exchange": "a single process",
    "planning": "counts what the others send",
    "serving": "requests and answers as JSON: tests/serving/test_layouts.py",
}
# The code that makes the numbers of a step, or of what is generated.
NUMERIC = (
    "alignment.dpo",
    "alignment.reward",
    "inference.sampling",
    "kernels.reference.attention",
    "kernels.reference.entropy",
    "kernels.reference.rms_norm",
    "kernels.reference.rope",
    "model.heads",
    "model.model",
    "model.noise",
    "model.objective",
    "model.outputs",
    "model.sequences",
    "model.operations",
    "model.parameters",
    "model.transformer",
    "model.initialization",
    "model.build",
    "optim.adamw",
    "optim.norm",
    "optim.schedule",
    "parallel.tensor",
    "parallel.vocabulary",
    "parallel.walk",
    "parallel.weights",
    "parallel.zero",
    "parallel.collectives",
    "parallel.context",
    "parallel.linear_cross_entropy",
    "parallel.pipeline.executor",
    "parallel.pipeline.messages",
    "training.step",
)
# What takes part in a mean, as factors of these names.
MASKED = ("alignment.dpo", "alignment.reward")
MASKS = ("there", "last")
# Where what is divided is no number of a step.
NO_NUMBERS = {
    "alignment.dealing": "how many microbatches there are: tests/alignment/test_feed.py",
    "alignment.packing": "shares of rows that are reported",
    "alignment.prepare": "paths",
    "alignment.reference": "paths",
    "alignment.rows_of_run": "paths",
    "alignment.run": "paths",
    "alignment.scoring": "scores on another scale: tests/alignment/test_scoring.py",
    "alignment.tokenizer_of_run": "paths",
    "inference.scoring": "replicas' shares of the work",
    "inference.text": "paths",
    "model.rope": "stretched frequencies: tests/model/test_rope.py, beside transformers' own",
    "parallel.pipeline.drawing": "lengths on a picture",
    "parallel.pipeline.simulator": "the share of time that a schedule is idle",
    "parallel.words": "seconds to wait",
    "training.charts": "lengths on a picture",
    "training.curves": "means of neighbouring points on a picture",
    "training.text_bytes": "of a loss that is measured already: tests/training/test_text_bytes.py",
    "training.flops": "the share of a device's peak",
    "training.loop": "paths, seconds, rates that are reported",
    "training.mesh_drawing": "lengths on a picture",
    "training.metrics": "paths, units",
    "training.profile": "paths",
    "training.report_tables": "paths, units, which rows are shown",
    "training.report": "paths, rates that are reported",
    "training.run_files": "paths",
    "training.samples": "paths",
    "training.token_feed": "how many batches a set has",
    "training.validation": "means of validation losses: tests/training/test_data_in_runs.py",
}


@dataclass(frozen=True)
class Message:
    """The operation of one call site."""

    site: str
    operation: str

    def __str__(self) -> str:
        return f"{self.site} {self.operation}"

    @contextmanager
    def planted(self) -> Iterator[None]:
        whole = Communicator._under_way

        def under_way(communicator, work, result, source, issued):
            handle = whole(communicator, work, result, source, issued)
            spoiled = [(event.site, event.operation) for event in issued] == [(self.site, self.operation)]
            return _Spoiled(handle, communicator, self.operation) if spoiled else handle

        unsent = Communicator.send

        def send(communicator, tensor, peer, site):
            wrong = tensor * 0.5 if (site, "send") == (self.site, self.operation) else tensor
            return unsent(communicator, wrong, peer, site)

        unexchanged = Communicator.exchange

        def exchange(communicator, tensor, to, source, site):
            sends, receives = ((site, operation) == (self.site, self.operation) for operation in ("send", "recv"))
            handle = unexchanged(communicator, tensor * 0.5 if sends else tensor, to, source, site)
            return _Spoiled(handle, communicator, "recv") if receives else handle

        unsummed = Communicator.all_reduce

        def all_reduce(communicator, tensor, site):
            mine = tensor.clone()
            handle = unsummed(communicator, tensor, site)
            handle.mine = mine
            return handle

        names = ("_under_way", "send", "exchange", "all_reduce")
        before = [getattr(Communicator, name) for name in names]
        for name, mutated in zip(names, (under_way, send, exchange, all_reduce), strict=True):
            setattr(Communicator, name, mutated)
        try:
            yield
        finally:
            for name, original in zip(names, before, strict=True):
                setattr(Communicator, name, original)


class _Spoiled:
    """A handle whose operation took place, and whose result is this rank's own contribution alone."""

    def __init__(self, handle: Handle, communicator: Communicator, operation: str):
        self.handle, self.communicator, self.operation, self.source = handle, communicator, operation, handle.source
        self.mine = None

    def wait(self):
        operation, rank, size = self.operation, self.communicator.rank, self.communicator.size
        result = self.handle.wait()
        if operation == "all_gather":
            result.copy_(self.source.repeat(size, *[1] * (result.dim() - 1)))
        elif operation == "reduce_scatter":
            result.copy_(self.source.chunk(size)[rank])
        elif operation == "all_to_all":
            result.copy_(self.source[rank].expand_as(result))
        elif operation == "all_reduce":
            result.copy_(self.mine)
        elif operation == "recv":
            result.mul_(0.5)
        return result


@dataclass(frozen=True)
class Division:
    """The n-th division (or mean) of a module, named by its function and source."""

    module: str
    function: str
    number: int
    source: str

    def __str__(self) -> str:
        return f"{self.module}.{self.function}: {self.source}"

    @property
    def generates(self) -> bool:
        """Whether it is no part of a training step."""
        return self.module.partition(".")[0] in GENERATING_ROOMS

    def spoil(self, tree: ast.Module) -> None:
        _Double(self.number).visit(tree)

    @contextmanager
    def planted(self) -> Iterator[None]:
        module = importlib.import_module(f"megatron_lite.{self.module}")
        tree = _parse(self.module)
        self.spoil(tree)
        compiled = compile(ast.fix_missing_locations(tree), module.__file__, "exec")
        target = _find_function(module, self.function)
        before = target.__code__
        target.__code__ = _find_code(compiled, self.function)
        try:
            yield
        finally:
            target.__code__ = before


@dataclass(frozen=True)
class Mask(Division):
    """The n-th product with a mask of a module."""

    def spoil(self, tree: ast.Module) -> None:
        _Unmask(self.number).visit(tree)


def divisions() -> list[Division]:
    """Every division and mean in the numeric modules."""
    return [
        Division(module, path, number, ast.unparse(node))
        for module in NUMERIC
        for number, (path, node) in enumerate(_normalizations(_parse(module)))
    ]


def masks() -> list[Mask]:
    """Every product with a mask in the modules that have any."""
    return [
        Mask(module, path, number, ast.unparse(node))
        for module in MASKED
        for number, (path, node) in enumerate(_nodes(_parse(module), _is_masked))
    ]


def unwatched() -> list[str]:
    """Modules of these rooms in which something is divided, and which are in neither list."""
    found = []
    for room in ("kernels.reference", *STEP_ROOMS, *GENERATING_ROOMS):
        first, _, rest = room.partition(".")
        folder = KERNELS / rest if first == "kernels" else PACKAGE / room
        for path in folder.rglob("*.py"):
            module = ".".join([room, *path.relative_to(folder).with_suffix("").parts])
            if module not in (*NUMERIC, *NO_NUMBERS) and any(_normalizations(_parse(module))):
                found.append(module)
    return sorted(found)


def _parse(module: str) -> ast.Module:
    room, _, rest = module.partition(".")
    folder = KERNELS if room == "kernels" else PACKAGE / room
    return ast.parse((folder / (rest.replace(".", "/") + ".py")).read_text(encoding="utf-8"))


def _is_normalization(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Div)
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        return name in ("mean", "_foreach_div_", "_foreach_addcdiv_")
    return False


def _is_masked(node: ast.AST) -> bool:
    """Whether it is a product with a mask."""
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and any(map(_is_mask, (node.left, node.right)))


def _is_mask(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in MASKS


def _normalizations(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    return _nodes(tree, _is_normalization)


def _nodes(tree: ast.Module, wanted: Callable[[ast.AST], bool]) -> Iterator[tuple[str, ast.AST]]:
    """(outermost function or method, node), in the order in which a transformer meets them."""

    def walk(node: ast.AST, path: tuple[str, ...], inside: bool) -> Iterator[tuple[str, ast.AST]]:
        named = isinstance(node, ast.FunctionDef | ast.ClassDef) and not inside
        path = (*path, node.name) if named else path
        inside = inside or isinstance(node, ast.FunctionDef)
        if wanted(node):
            yield ".".join(path), node
        for child in ast.iter_child_nodes(node):
            yield from walk(child, path, inside)

    yield from walk(tree, (), False)


class _Double(ast.NodeTransformer):
    """Doubles the result of normalization number `number`, counted parents first."""

    def __init__(self, number: int):
        self.left = number

    def visit(self, node: ast.AST) -> ast.AST:
        hit = False
        if _is_normalization(node):
            hit = self.left == 0
            self.left -= 1
        node = self.generic_visit(node)
        if not hit:
            return node
        if isinstance(node, ast.Call) and node.func.attr.startswith("_foreach"):
            # These write in place: double what is divided by.
            node.args[-1] = ast.BinOp(node.args[-1], ast.Mult(), ast.Constant(2))
            return node
        return ast.BinOp(node, ast.Mult(), ast.Constant(2))


class _Unmask(ast.NodeTransformer):
    """Leaves the mask out of product number `number`, counted parents first."""

    def __init__(self, number: int):
        self.left = number

    def visit(self, node: ast.AST) -> ast.AST:
        hit = False
        if _is_masked(node):
            hit = self.left == 0
            self.left -= 1
        node = self.generic_visit(node)
        if not hit:
            return node
        return node.right if _is_mask(node.left) else node.left


def _find_function(module: types.ModuleType, path: str) -> types.FunctionType:
    found = module
    for name in path.split("."):
        found = vars(found)[name]
    while not isinstance(found, types.FunctionType):  # property, staticmethod, torch.no_grad's wrapper
        found = getattr(found, "fget", None) or found.__func__
    return getattr(found, "__wrapped__", found)


def _find_code(code: types.CodeType, path: str) -> types.CodeType:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            if constant.co_qualname == path:
                return constant
            if path.startswith(f"{constant.co_qualname}."):
                return _find_code(constant, path)
    raise LookupError(f"no function {path}")
