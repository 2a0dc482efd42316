"""Made dialogues and preferences, for trying the whole chain after pretraining on a small model.

A question names a thing; an answer names it again in one sentence, and goes on for none to three more that say nothing.
The rule that prefers: an answer that names the thing and ends, and of two such the one with fewer sentences.

    python tools/make_preferences.py --output-dir D      writes dialogues_{train,valid}.jsonl, pairs_{train,valid}.jsonl
                                                         and prompts.jsonl, the questions that are not trained on
    python tools/make_preferences.py --judge A.jsonl B.jsonl      how often A's answers win over B's
"""

import argparse
import json
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

THINGS = (
    "file", "module", "function", "kernel", "device", "driver", "socket", "thread", "process", "buffer", "package",
    "table", "window", "string", "number", "server", "client", "signal", "command", "option", "object", "class",
    "method", "event", "list", "queue", "tree", "page", "block", "network",
)  # fmt: skip
QUESTIONS = (
    "What is a {}?", "Tell me about the {}.", "What does a {} do?", "Please explain the word {}.", "Why is there a {}?",
    "How would you describe a {}?",
)  # fmt: skip
ANSWERS = ("A {} is a part of the system.", "The {} is used by the program.", "The {} is what a program works with.")
FILLERS = (
    "There is more to say.", "It is not always so.", "See the other pages for this.", "This has long been so.",
    "Some would say it in another way.",
)  # fmt: skip
MOST_FILLERS = 3
HELD_OUT = 5  # one question about a thing in so many is kept from training


def answer(thing: str, fillers: int, random_: random.Random) -> str:
    """One sentence about the thing, and so many that say nothing."""
    return " ".join([random_.choice(ANSWERS).format(thing), *random_.sample(FILLERS, fillers)])


def worth(prompt: str, text: str) -> int:
    """The made rule: minus the sentences of an answer that names the thing and ends; worse than all for any other."""
    thing = next(one for one in THINGS if f" {one}" in prompt)
    whole = text.strip()
    return -whole.count(".") if f" {thing} " in f" {whole}" and whole.endswith(".") else -100


def questions(held_out: bool) -> Iterator[tuple[str, str]]:
    """(thing, question) of those that are trained on, or of those that are not."""
    for number, (thing, question) in enumerate(product(THINGS, QUESTIONS)):
        if (number % HELD_OUT == 0) == held_out:
            yield thing, question.format(thing)


def dialogues(held_out: bool, times: int, seed: int) -> Iterator[dict[str, Any]]:
    """Every question `times` times, with answers of every length."""
    random_ = random.Random(f"dialogues {seed} {held_out}")
    for _ in range(times):
        for thing, question in questions(held_out):
            said = answer(thing, random_.randint(0, MOST_FILLERS), random_)
            yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": said}]}


def pairs(held_out: bool, times: int, seed: int) -> Iterator[dict[str, Any]]:
    """Two answers of different lengths, the better first."""
    random_ = random.Random(f"pairs {seed} {held_out}")
    for _ in range(times):
        for thing, question in questions(held_out):
            few, many = sorted(random_.sample(range(MOST_FILLERS + 1), 2))
            chosen, rejected = answer(thing, few, random_), answer(thing, many, random_)
            yield {"prompt": question, "chosen": chosen, "rejected": rejected, "criterion": "brief"}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows)} rows")


def win_rate(ours: Path, theirs: Path) -> float:
    """How often an answer of `generate`'s file is worth more than the other file's to the same question; a draw is
    half a win.
    """
    rows = [[json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in (ours, theirs)]
    points, games = 0.0, 0
    for one, other in zip(*rows, strict=True):
        asked = one["messages"][-1]["content"]
        for mine, its in zip(one["completions"], other["completions"], strict=True):
            difference = worth(asked, mine["text"]) - worth(asked, its["text"])
            points += 0.5 + 0.5 * ((difference > 0) - (difference < 0))
            games += 1
    return points / games


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output-dir", type=Path)
    what.add_argument("--judge", type=Path, nargs=2, metavar=("A.jsonl", "B.jsonl"))
    parser.add_argument("--times", type=int, default=8, help="how often each question is asked (default: 8)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.judge:
        print(f"{win_rate(*options.judge):.3f}")
        return
    options.output_dir.mkdir(parents=True, exist_ok=True)
    asked = [{"messages": [{"role": "user", "content": question}]} for _, question in questions(held_out=True)]
    write(options.output_dir / "prompts.jsonl", asked)
    for name, make in (("dialogues", dialogues), ("pairs", pairs)):
        for part, held_out in (("train", False), ("valid", True)):
            rows = list(make(held_out, options.times if not held_out else 2, options.seed))
            write(options.output_dir / f"{name}_{part}.jsonl", rows)


if __name__ == "__main__":
    main()
