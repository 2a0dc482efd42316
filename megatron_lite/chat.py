"""Talk to a model on the terminal: `[torchrun ...] -m megatron_lite.chat CHECKPOINT [parallel.tensor=2 ...]`.

/reset begins anew, /system TEXT sets what the model is told first (and begins anew), /exit or Ctrl-D ends. Ctrl-C stops
an answer, not the program; under torchrun it ends all processes, as torchrun has it. Lines that are piped in are
answered one by one.
"""

import json
import readline  # noqa: F401  `input` takes the line's editing and history from it
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from types import FrameType

from megatron_lite.data.chat_template import ChatTemplate, Message
from megatron_lite.errors import UsageError, run_command
from megatron_lite.inference.arguments import command_line, parse
from megatron_lite.inference.engine import Engine, check_request
from megatron_lite.inference.opening import Opened, opened_model
from megatron_lite.inference.requests import Completion, Limits, Request
from megatron_lite.inference.sampling import Sampling
from megatron_lite.inference.scheduler import Sizes
from megatron_lite.inference.text import chat_template_of
from megatron_lite.parallel.words import Words


def main() -> None:
    parser = command_line("chat", __doc__, temperature=0.7, max_new_tokens=512)
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first")
    arguments, options = parse(parser)
    with opened_model(options.asked) as opened:
        template = chat_template_of(opened.tokenizer, options.template)
        limits = options.limits_with(opened.tokenizer)
        talk(Chat(opened, template, options.sampling, limits, arguments.seed, arguments.system), opened)


@dataclass
class Chat:
    """A conversation with a model, the same on every rank. What was computed of it stays in the engine's cache, so that
    a turn computes only what is new.
    """

    opened: Opened
    template: ChatTemplate
    sampling: Sampling
    limits: Limits
    seed: int
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    turns: int = 0

    def __post_init__(self) -> None:
        model = self.opened.model
        one = Sizes(1, rows=1)
        self.engine = Engine(model, replace(one, blocks=one.blocks_of(model.longest)), self.opened.tokenizer.decode)
        self.stopped = False

    def reset(self, system: str | None) -> None:
        self.system, self.messages = system, []

    def say(self, text: str) -> Completion:
        """The answer, written as it comes by the first rank. Raises UsageError, and forgets the text, where the
        conversation has outgrown the model.
        """
        told = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = tuple(self.template.encode([*told, *messages]))
        request = Request(self.turns, prompt, self.limits, self.sampling, self.seed)
        check_request(request, self.opened.model)
        self.turns += 1
        self.engine.add(request, lambda addition: self._show(addition.text))
        with self._listening():
            while self.engine.busy:
                self.engine.step()
                if self.stopped:
                    self.engine.cancel(request.number)
        answer = self.engine.completions.pop((request.number, 0))
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        self._show("\n")
        return answer

    def _show(self, text: str) -> None:
        if self.opened.model.mesh.rank == 0:
            sys.stdout.write(text)
            sys.stdout.flush()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Ctrl-C stops the answer between two steps. One process can do so by itself; several would have to agree."""
        self.stopped = False
        if self.opened.model.mesh.world.size > 1:
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            self.stopped = True

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def talk(chat: Chat, opened: Opened) -> None:
    """Until the user ends it. All ranks hear what rank 0 reads."""
    opened.words.patience = inf  # a person may think for hours
    while (line := heard(opened.words, opened.model.mesh.rank == 0)) is not None:
        command, _, rest = line.strip().partition(" ")
        if command in ("/exit", "/quit"):
            return
        if command == "/reset":
            chat.reset(chat.system)
        elif command == "/system":
            chat.reset(rest.strip() or None)
        elif command.startswith("/"):
            note(f"{command} is none of /reset, /system TEXT, /exit", opened)
        elif line.strip():
            answered(chat, line, opened)


def answered(chat: Chat, line: str, opened: Opened) -> None:
    """What a line brings about."""
    try:
        answer = chat.say(line)
    except UsageError as error:
        note(f"{error}; /reset begins anew", opened)
        return
    if answer.finish == "length":
        note("(the answer ends here: --max-new-tokens, or the model's longest sequence)", opened)


def heard(words: Words, reads: bool) -> str | None:
    """The user's next line, on every rank; None at the end."""
    line = json.dumps(read_line()) if reads else ""
    return json.loads(words.exchange(line, "chat")[0])


def read_line() -> str | None:
    """Ctrl-C at the prompt drops what was typed."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return None
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D ends)", file=sys.stderr)


def note(text: str, opened: Opened) -> None:
    if opened.model.mesh.rank == 0:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
