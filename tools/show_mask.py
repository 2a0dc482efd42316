"""Show which tokens of a file's first rows are trained.

    python tools/show_mask.py dialogues.jsonl --tokenizer runs/pretrain --rows 3
    python tools/show_mask.py pairs.parquet --tokenizer tokenizer.model --chat-template chat.jinja --pairs

FILE is what data.train takes, JSONL (also .gz, .zst) or Parquet. Tokens that the template makes stand by their names, a
line end as ⏎. A row that cannot be trained on is named instead, and the exit code is then 3.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import torch

from megatron_lite.alignment.dialogues import Continuation, Sample, read_dialogue, read_pair
from megatron_lite.alignment.masks import Masks
from megatron_lite.alignment.rows import BadRow, Row, parsed, place_of, read_rows
from megatron_lite.alignment.store import Segment
from megatron_lite.alignment.template import find_template
from megatron_lite.checkpoint import open_checkpoint
from megatron_lite.checkpoint.directory import named
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError, run_command
from megatron_lite.inference.text import find_tokenizer
from megatron_lite.mesh import mesh_of_one

UNPRINTED = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f]")  # which a terminal might take for orders


@dataclass(frozen=True)
class Style:
    """What stands before and behind text that is trained or not, and the name of a control token that is or is not."""

    text: tuple[str, str]
    trained: tuple[str, str]
    control: tuple[str, str]
    trained_control: tuple[str, str]

    def around(self, piece: "Piece") -> tuple[str, str]:
        if piece.control:
            return self.trained_control if piece.trained else self.control
        return self.trained if piece.trained else self.text


COLOURED = Style(
    ("\x1b[2m", "\x1b[0m"), ("\x1b[32m", "\x1b[0m"), ("\x1b[2;36m", "\x1b[0m"), ("\x1b[1;30;42m", "\x1b[0m")
)
BRACKETS = Style(("", ""), ("⟦", "⟧"), ("", ""), ("⟦", "⟧"))


@dataclass(frozen=True)
class Piece:
    """A stretch of tokens as text; `control`: the name of one that the template makes."""

    text: str
    trained: bool
    control: bool


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE", type=Path, help="rows")
    parser.add_argument("--tokenizer", metavar="T", required=True, help="file or directory, checkpoint or run")
    parser.add_argument("--chat-template", metavar="F", help="Jinja (default: the tokenizer's own, else the built-in)")
    parser.add_argument("--system-prompt", metavar="S", help="begins dialogues that have none, as data.system_prompt")
    parser.add_argument("--rows", type=int, default=1, metavar="N", help="how many of the first ones (1)")
    parser.add_argument("--pairs", action="store_true", help="rows have a chosen and a rejected answer")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="auto: on a terminal")
    arguments = parser.parse_args()
    if arguments.rows < 1:
        parser.error(f"--rows {arguments.rows} is below 1")
    return arguments


def tokenizer_at(path: str) -> Tokenizer:
    if named(Path(path)):  # a run or a checkpoint
        return find_tokenizer(open_checkpoint(path, mesh_of_one(torch.device("cpu"))), None)
    return open_tokenizer(path)


def samples_of(row: Row, arguments: argparse.Namespace) -> dict[str, Sample]:
    """By what each is in its row. Raises BadRow."""
    if not arguments.pairs:
        return {"": read_dialogue(row, arguments.system_prompt)}
    pair = read_pair(row, arguments.system_prompt)
    return {", chosen": pair.chosen, ", rejected": pair.rejected}


def pieces(segment: Segment, tokenizer: Tokenizer) -> Iterator[Piece]:
    """In order; control tokens one by one."""
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    both = zip(segment.tokens.tolist(), segment.trained.tolist(), strict=True)
    for control, group in groupby(both, lambda one: one[0] in names):
        tokens = list(group)
        if control:
            yield from (Piece(names[token], trained, True) for token, trained in tokens)
            continue
        # A text's first space may be lost where its ids are decoded alone, so each stretch is decoded from its start.
        ids, shown, end = [token for token, _ in tokens], 0, 0
        for trained, stretch in groupby(tokens, lambda one: one[1]):
            end += len(list(stretch))
            text = tokenizer.decode(ids[:end])
            yield Piece(text[shown:], trained, False)
            shown = len(text)


def visible(text: str) -> str:
    return UNPRINTED.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def drawn(found: list[Piece], style: Style) -> str:
    """A style's begin and end stand in each line, and text that spells a control token is apart from one."""
    text = ""
    for _, group in groupby(found, lambda piece: (piece.control, piece.trained)):
        stretch = list(group)
        before, behind = style.around(stretch[0])
        lines = "".join(visible(piece.text).replace("\n", "⏎\n") for piece in stretch).split("\n")
        text += "\n".join(before + line + behind if line else "" for line in lines)
    return text


def counts(sample: Sample, segment: Segment, masks: Masks) -> str:
    tokenizer, trained = masks.tokenizer, segment.tokens[segment.trained].tolist()
    if isinstance(sample, Continuation) or masks.answers is None:
        ends, turns = {tokenizer.eod_id}, 1
    else:
        ends = {tokenizer.special_tokens[name] for name in masks.answers.ends}
        turns = sum(message["role"] == "assistant" for message in sample.messages[sample.given :])
    return (
        f"{len(segment.tokens):,} tokens, {len(trained):,} trained; end-of-turn tokens trained: "
        f"{sum(token in ends for token in trained)}, assistant turns to train: {turns}"
    )


def show(arguments: argparse.Namespace, masks: Masks, style: Style) -> int:
    """How many of the rows are bad."""
    bad = 0
    rows = (one for part in read_rows(arguments.file) for one in part)
    for number, row in islice(rows, arguments.rows):
        place = place_of(arguments.file, number)
        try:
            for name, sample in samples_of(parsed(row), arguments).items():
                segment = masks.segment(sample)
                print(f"\n{place}{name}: {counts(sample, segment, masks)}\n")
                print(drawn(list(pieces(segment, masks.tokenizer)), style))
        except BadRow as fault:
            bad += 1
            print(f"\n{place}: {visible(str(fault))}")
    return bad


def main() -> None:
    arguments = parse_arguments()
    tokenizer = tokenizer_at(arguments.tokenizer)
    masks = Masks(tokenizer, find_template(tokenizer, arguments.chat_template))
    own = "the tokenizer's own" if tokenizer.chat_template is not None else "the built-in one"
    style = COLOURED if arguments.color == "always" or (arguments.color == "auto" and sys.stdout.isatty()) else BRACKETS
    legend = [Piece("trained", True, False), Piece(" not trained ", False, False)]
    if style is COLOURED:
        legend += [Piece("<end of turn, trained>", True, True), Piece(" <made by the template>", False, True)]
    print(f"{drawn(legend, style)}   ⏎ a line end   chat template: {arguments.chat_template or own}")
    if bad := show(arguments, masks, style):
        raise DataError(f"{arguments.file}: {bad} of the rows shown cannot be trained on")


if __name__ == "__main__":
    run_command(main)
