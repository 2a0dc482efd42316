"""The code behind each rule and stage of curation, as a digest beside its version: what tells that one was changed.

Run in tests/, once versions are raised where results change, `python -m support.curation_versions` notes it as it is.
"""

import ast
import hashlib
import importlib
import io
import json
import pkgutil
import re
import tokenize
from functools import cache
from pathlib import Path

import megatron_lite
from megatron_lite.curation import rules, stages

PACKAGE = Path(megatron_lite.__file__).parent
STORED = Path(__file__).parents[1] / "curation" / "versions.json"
CURATION = "megatron_lite.curation"
COMPILED = {f"{CURATION}._{name}": PACKAGE / f"curation/csrc/{name}.cpp" for name in ("text", "lists", "dedup")}
# How work is called, told what to do and complains: none of it decides a result that stands.
LEFT_OUT = (f"{CURATION}.engine", f"{CURATION}.config", "megatron_lite.config", "megatron_lite.errors")

Note = dict[str, int | str]


def working_classes() -> dict[str, type]:
    """Every rule and every stage's work, by name."""
    found: dict[str, type] = {}
    for package in (rules, stages):
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for name, one in vars(importlib.import_module(info.name)).items():
                own = isinstance(one, type) and one.__module__ == info.name and "__call__" in vars(one)
                if own and not getattr(one, "_is_protocol", False):
                    assert name not in found, f"two classes are called {name}: fingerprints tell them by name"
                    found[name] = one
    return found


def notes() -> dict[str, Note]:
    """Of each class its version and a digest of the code that it may run."""
    return {name: {"version": one.version, "code": code_of(one.__module__)} for name, one in working_classes().items()}


def stored() -> dict[str, Note]:
    return json.loads(STORED.read_text(encoding="utf-8"))


def code_of(module: str) -> str:
    """A digest of a module and all of this package that it imports: without comments, docstrings and blank lines."""
    digest = hashlib.sha256()
    for path in sorted(files_of(module)):
        digest.update(f"{path.relative_to(PACKAGE)}\n{text_of(path)}\n".encode())
    return digest.hexdigest()[:16]


def files_of(module: str) -> set[Path]:
    """Sources and lists, through every import."""
    files: set[Path] = set()
    waiting, seen = [module], set()
    while waiting:
        name = waiting.pop()
        if name in seen or name.startswith(LEFT_OUT):
            continue
        seen.add(name)
        if name in COMPILED:
            files |= with_includes(COMPILED[name])
            continue
        path = source_of(name)
        if path is None:
            continue
        files.add(path)
        lists = path.parent / "lists"
        if lists.is_dir() and '"lists"' in path.read_text(encoding="utf-8"):
            files |= {one for one in lists.rglob("*") if one.is_file() and one.suffix != ".md"}
        waiting += imports_of(path)
    return files


def source_of(name: str) -> Path | None:
    base = PACKAGE.parent / name.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@cache
def imports_of(path: Path) -> tuple[str, ...]:
    """Modules of this package that a file names, and whatever it takes out of one in case that is a module."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("megatron_lite"):
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("megatron_lite")]
    return tuple(found)


def with_includes(path: Path) -> set[Path]:
    found, waiting = set(), [path]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        waiting += [one.parent / name for name in re.findall(r'#include "([^"]+)"', one.read_text(encoding="utf-8"))]
    return found


@cache
def text_of(path: Path) -> str:
    """Of code what runs; of a list all of it."""
    text = path.read_text(encoding="utf-8")
    if path.suffix not in (".py", ".cpp", ".h"):
        return text
    text = without_words(text) if path.suffix == ".py" else without_comments(text)
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())


def without_comments(source: str) -> str:
    """C++ without comments; what looks like one inside quotes is none."""
    quoted, comment = r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', r"//[^\n]*|/\*.*?\*/"
    return re.sub(f"({quoted})|{comment}", lambda found: found[1] or "", source, flags=re.DOTALL)


def without_words(source: str) -> str:
    """Python without comments and docstrings."""
    lines = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column] + "\n"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            words = node.body[0]
            lines[words.lineno - 1 : words.end_lineno] = ["\n"] * (words.end_lineno - words.lineno + 1)
    return "".join(lines)


def main() -> None:
    before = stored() if STORED.is_file() else {}
    now = notes()
    for name, note in now.items():
        old = before.get(name, note)
        if old["code"] != note["code"] and old["version"] == note["version"]:
            print(f"{name}: other code, the same version {note['version']}: its results must be the same")
    lines = (f" {json.dumps(name)}: {json.dumps(note)}" for name, note in sorted(now.items()))
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
