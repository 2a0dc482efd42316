"""Our SFT and DPO steps against TRL's: the same weights, samples, cores, float32, AdamW, clipping at 1.

Samples are of very unequal lengths. Both sides go through all of them in turn in one process, as many rounds as asked,
so that a machine that slows down slows both. A row gives both medians of tokens/s, padding not counted, the median of
the rounds' ratios (ours / TRL's; above 1 we are faster), and the same of processor seconds a token (TRL's / ours),
which say more where others use the machine. TRL is in its own default form: padded batches, since its packing takes
flash-attention to keep samples apart. The first batch's losses are compared as well where both have the same one. Takes
the extra `trl`.

    sft           a row a sample, padded like TRL's
    sft packed    several samples a row, none of which sees another
    dpo           a pair a row, the reference's log-probabilities computed before on both sides
    dpo packed    several pairs a row, likewise

    python tools/benchmark/compare_sft.py --rounds 5
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from megatron_lite.alignment.dealing import DataRank
from megatron_lite.alignment.dpo import Dpo
from megatron_lite.alignment.feed import RowsFeed, RowsValidation
from megatron_lite.alignment.reference import reference_of
from megatron_lite.alignment.sets import RunRows, SampleSet
from megatron_lite.alignment.store import Segment, Store, open_store
from megatron_lite.alignment.store_writer import StoreWriter
from megatron_lite.config import AlignedConfig, config_from_tree, resolve
from megatron_lite.data.sidecar import TokenizerIdentity
from megatron_lite.device import keep_freed_memory
from megatron_lite.exchange.convert import open_source
from megatron_lite.exchange.origin import load_origin
from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.model.model import Model
from megatron_lite.training.step import Trainer

END, UNKNOWN, FIRST = 0, 1, 2  # </s>, <unk>, the first word
CASES = ("sft", "sft packed", "dpo", "dpo packed")
RATE, BETA = 1e-5, 0.1


@dataclass(frozen=True)
class Sample:
    """A prompt with two answers, which end with END; fine-tuning takes the first."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True)
class Workload:
    model: dict[str, Any]  # by Hugging Face's names
    samples: list[Sample]
    batch: int  # samples of a step
    longest: int  # tokens of a sample, and of a packed row


@dataclass(frozen=True)
class Round:
    """Once through all samples; `processor` are seconds of all threads."""

    seconds: float
    processor: float
    tokens: int

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


@dataclass
class Watch:
    """Starts when it is made."""

    begin: float = field(default_factory=time.perf_counter)
    busy: float = field(default_factory=time.process_time)

    def round(self, tokens: int) -> Round:
        return Round(time.perf_counter() - self.begin, time.process_time() - self.busy, tokens)


@dataclass(frozen=True)
class Side:
    """`loss` is the first batch's, before any step."""

    loss: float
    run: Callable[[], Round]


def made_samples(count: int, longest: int, vocab_size: int, seed: int = 1) -> list[Sample]:
    """Random words; lengths are log-normal, most far below the longest."""
    random = np.random.default_rng(seed)

    def words(median: float, most: int) -> list[int]:
        length = int(np.clip(random.lognormal(math.log(median), 0.9), 2, most))
        return random.integers(FIRST, vocab_size, length).tolist()

    third = longest // 3
    return [
        Sample(words(third / 4, third), [*words(third / 3, third - 1), END], [*words(third / 3, third - 1), END])
        for _ in range(count)
    ]


def store_of(prefix: Path, workload: Workload, pairs: bool) -> Store:
    size = workload.model["vocab_size"]
    with StoreWriter(prefix, TokenizerIdentity("0" * 64, size, END)) as writer:
        for number, one in enumerate(workload.samples):
            answers = (one.chosen, one.rejected) if pairs else (one.chosen,)
            numbers = {"row": float(number)} | ({"margin": 0.0} if pairs else {})
            writer.add([segment(one.prompt, answer) for answer in answers], numbers)
        writer.finish(f"made {pairs}", ["row", "margin"] if pairs else ["row"], {})
    return open_store(prefix)


def segment(prompt: list[int], answer: list[int]) -> Segment:
    return Segment(np.array(prompt + answer), np.arange(len(prompt) + len(answer)) >= len(prompt))


def config_of(case: str, workload: Workload, store: Store) -> AlignedConfig:
    """Packed, a step has as many rows as its samples' tokens fill."""
    packed, rows = case.endswith("packed"), workload.batch
    length = workload.longest * (2 if case.startswith("dpo") else 1)  # a pair's two answers lie in one row
    if packed:
        rows = max(1, round(workload.batch * store.lengths.mean() / length))
    config = config_from_tree(
        {
            "model": workload.model,
            "parallel": {"zero_regather": "step"},
            "data": {"packing": packed},
            "optim": {"lr": RATE, "schedule": "constant", "betas": [0.9, 0.999], "weight_decay": 0.0, "grad_clip": 1.0},
            "train": {
                "steps": 10**6, "global_batch_size": rows, "micro_batch_size": rows, "dtype": "float32",
                "sequence_length": length, "run_dir": "unused",
            },
            case.partition(" ")[0]: {},
        }
    )  # fmt: skip
    assert isinstance(config, AlignedConfig)
    return config


def our_side(case: str, workload: Workload, weights: Path, folder: Path) -> Side:
    pairs = case.startswith("dpo")
    store = store_of(folder / case.replace(" ", "_"), workload, pairs)
    config = config_of(case, workload, store)
    model = Model(config, resolve(config, 1), build_mesh(MeshShape(), torch.device("cpu")))
    load_origin(open_source(weights), config.model, model.stage, model.mesh)
    reference = reference_of(store, model, "the first weights", folder) if pairs else None
    rows = SampleSet("made", 1.0, store, reference)
    trainer = Trainer(model, Dpo(beta=BETA) if pairs else None)
    place = DataRank.of(model)
    loss = trainer.evaluate(RowsValidation(rows, config, place).microbatches(0)).loss.item()
    feed = RowsFeed((rows,), config, place)
    consumed, step = 0, 0

    def run() -> Round:
        nonlocal consumed, step
        before, end = consumed, consumed + RunRows((rows,), config).covering(1)
        watch = Watch()
        while consumed < end:
            step += 1
            result = trainer.train_step(feed.microbatches(consumed, step), RATE)
            result.loss.item()  # the step is done
            consumed += feed.size(consumed)
        return watch.round(feed.tokens(consumed) - feed.tokens(before))

    return Side(loss, run)


def their_side(case: str, workload: Workload, weights: Path, folder: Path) -> Side:
    import trl
    from datasets import Dataset, disable_progress_bars
    from transformers import LlamaForCausalLM, PrinterCallback

    disable_progress_bars()
    pairs = case.startswith("dpo")
    shared = {
        "output_dir": str(folder / "trl"), "per_device_train_batch_size": workload.batch, "num_train_epochs": 1,
        "learning_rate": RATE, "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0,
        "max_grad_norm": 1.0, "adam_beta2": 0.999, "bf16": False, "use_cpu": True, "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential", "logging_first_step": True, "report_to": [], "save_strategy": "no",
        "disable_tqdm": True, "dataloader_pin_memory": False, "max_length": workload.longest, "seed": 0,
    }  # fmt: skip
    model = LlamaForCausalLM.from_pretrained(weights, dtype=torch.float32)
    tokenizer = tokenizer_of_words(workload.model["vocab_size"])
    if pairs:
        arguments = trl.DPOConfig(**shared, beta=BETA, precompute_ref_log_probs=True)
        rows = Dataset.from_list([texts(one) for one in workload.samples])
        trainer = trl.DPOTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    else:
        arguments = trl.SFTConfig(**shared, completion_only_loss=True, packing=False)
        rows = Dataset.from_list([masked(one) for one in workload.samples])
        trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    epochs = epoch_watch(sum(tokens_of(one, pairs) for one in workload.samples))
    trainer.add_callback(epochs)
    trainer.remove_callback(PrinterCallback)

    def run() -> Round:
        trainer.train()
        return epochs.last

    run()
    return Side(next(line["loss"] for line in trainer.state.log_history if "loss" in line), run)


def epoch_watch(tokens: int) -> Any:
    """Times an epoch without what comes before and after it."""
    from transformers import TrainerCallback

    class Epochs(TrainerCallback):
        watch: Watch
        last: Round

        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            self.watch = Watch()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.last = self.watch.round(tokens)

    return Epochs()


def tokenizer_of_words(vocab_size: int) -> Any:
    """Word "w7" is token 7."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"</s>": END, "<unk>": UNKNOWN} | {f"w{token}": token for token in range(FIRST, vocab_size)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="</s>", unk_token="<unk>")


def texts(one: Sample) -> dict[str, str]:
    def text(ids: Sequence[int]) -> str:
        return "".join("</s>" if token == END else f"w{token} " for token in ids)

    return {"prompt": text(one.prompt), "chosen": text(one.chosen), "rejected": text(one.rejected)}


def masked(one: Sample) -> dict[str, list[int]]:
    mask = [0] * len(one.prompt) + [1] * len(one.chosen)
    return {"input_ids": one.prompt + one.chosen, "completion_mask": mask}


def tokens_of(one: Sample, pairs: bool) -> int:
    return len(one.prompt) + len(one.chosen) + (len(one.prompt) + len(one.rejected) if pairs else 0)


def write_weights(folder: Path, model: dict[str, Any]) -> None:
    """A Hugging Face directory of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**model, bos_token_id=END, eos_token_id=END)).float().save_pretrained(folder)


def compare(case: str, ours: Side, theirs: Side, rounds: int) -> str:
    ours.run()  # theirs ran once when it was made
    pairs = []
    for _ in range(rounds):
        mine, other = ours.run(), theirs.run()
        pairs.append((mine, other))
        told = f"{mine.speed:,.0f} beside {other.speed:,.0f} tokens/s, {mine.speed / other.speed:.2f}"
        print(f"{case}: {told}, processor {cost(other) / cost(mine):.2f}", file=sys.stderr)
    speeds = [f"{statistics.median(pair[side].speed for pair in pairs):,.0f}" for side in (0, 1)]
    ratio = statistics.median(mine.speed / other.speed for mine, other in pairs)
    processor = statistics.median(cost(other) / cost(mine) for mine, other in pairs)
    difference = "" if case.endswith("packed") else f"{abs(ours.loss - theirs.loss):.0e}"
    return f"| {case} | {' | '.join(speeds)} | {ratio:.2f} | {processor:.2f} | {difference} |"


def cost(one: Round) -> float:
    """Processor seconds a token."""
    return one.processor / one.tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8, help="samples of a step")
    parser.add_argument("--longest", type=int, default=768)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory(torch.device("cpu"))  # as our commands do; the process is also theirs
    model: dict[str, Any] = {
        "num_hidden_layers": 8, "hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4,
        "intermediate_size": 688, "vocab_size": 4096, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    samples = made_samples(arguments.samples, arguments.longest, model["vocab_size"])
    workload = Workload(model, samples, arguments.batch, arguments.longest)
    print("| step | ours, tokens/s | TRL, tokens/s | ratio | processor | first loss differs by |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_weights(folder / "weights", model)
        for case in arguments.cases:
            ours, theirs = (side(case, workload, folder / "weights", folder) for side in (our_side, their_side))
            print(compare(case, ours, theirs, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
