"""A server in this process: on a port of its own, in threads, over a small model that knows a chat template."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

from support.generation import ONE, loaded
from support.layouts import Layout, build_trainer
from support.text import train_small_tokenizer

from megatron_lite.checkpoint import open_checkpoint, save
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.inference.engine import Engine
from megatron_lite.inference.generation import sizes_for
from megatron_lite.inference.opening import Opened
from megatron_lite.inference.requests import Completion, Request
from megatron_lite.inference.sampling import Sampling
from megatron_lite.inference.scheduler import Sizes
from megatron_lite.parallel.words import Words
from megatron_lite.serve import limits_of, template_of
from megatron_lite.serving.batch import Batch
from megatron_lite.serving.comparisons import Comparing
from megatron_lite.serving.judgements import opened_book
from megatron_lite.serving.leading import Messages, Share
from megatron_lite.serving.server import Lead, Served, listening
from megatron_lite.serving.settings import Settings

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}</s>{% endif %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
NAME, LONGEST = "small", 192
ROWS = 6


def save_small(directory: Path) -> Path:
    """A run with a checkpoint that carries its tokenizer and template."""
    small = train_small_tokenizer(directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = SentencePieceTokenizer(small)
    layout = Layout(layers=2)
    config = layout.config(sequence_length=LONGEST)
    model = config.model.model_copy(update={"vocab_size": tokenizer.vocab_size + 3})  # ids without a text
    trainer = build_trainer(layout, config=config.model_copy(update={"model": model}))
    save(directory / NAME / "checkpoints", trainer, 1, 12, tokenizer=tokenizer)
    return directory / NAME


def served_of(run: Path, tokenizer: Tokenizer, sizes: Sizes | None = None) -> Served:
    model = loaded(open_checkpoint(run, ONE))
    opened = Opened(model, tokenizer, Words.alone())
    return Served(opened, template_of(tokenizer, None), limits_of(tokenizer), sizes or Sizes(100, rows=ROWS))


@dataclass
class Running:
    """`address` without a slash at its end."""

    address: str
    lead: Lead
    thread: threading.Thread


@contextmanager
def running(served: Served, settings: Settings, comparing: Comparing | None = None) -> Iterator[Running]:
    """Ended, and joined, with the body. What the server raised is raised here."""
    engine = Engine(served.opened.model, served.sizes, served.opened.tokenizer.decode)
    messages = Messages(served.opened.model.mesh)
    batch = Batch(Share(engine), messages, served.opened.words, heartbeat=0.02)
    told: SimpleQueue[str] = SimpleQueue()
    raised: list[BaseException] = []

    def run(lead: Lead) -> None:
        try:
            with closing(listening("127.0.0.1", 0)) as place:
                lead.run(place, told.put)
        except BaseException as error:
            raised.append(error)

    with opened_book(comparing) if comparing is not None else nullcontext() as book:
        lead = Lead(served, settings, batch, book)
        lead.check()
        thread = threading.Thread(target=run, args=(lead,))
        thread.start()
        try:
            yield Running(told.get(timeout=30), lead, thread)
        finally:
            lead.end()
            thread.join(60)
            assert not thread.is_alive()
            if raised:
                raise raised[0]


def offline(served: Served, prompt: tuple[int, ...], sampling: Sampling, count: int, **others) -> list[Completion]:
    """The same request in an engine of its own, as the generate command asks it."""
    opened = served.opened
    limits = replace(limits_of(opened.tokenizer), max_new_tokens=count, stop_strings=others.pop("stops", ()))
    request = Request(**{"number": 0} | others, prompt=prompt, limits=limits, sampling=sampling)
    return Engine(opened.model, sizes_for([request], opened.model.longest), opened.tokenizer.decode).run([request])[0]


def chat_ids(tokenizer: Tokenizer, *messages: tuple[str, str]) -> tuple[int, ...]:
    """What the template makes of (role, content)s, put together by hand."""
    ids: list[int] = []
    for role, content in messages:
        ids += [*tokenizer.encode(f"{role}:{content}"), tokenizer.eod_id]
    return (*ids, *tokenizer.encode("a:"))
