"""A server's life: rank 0 listens and leads, all others follow, until a signal says that it is enough."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from types import FrameType

import uvicorn
from starlette.routing import Route

from megatron_lite.data.chat_template import ChatTemplate
from megatron_lite.errors import UsageError
from megatron_lite.inference.engine import Engine
from megatron_lite.inference.opening import Opened
from megatron_lite.inference.paged_cache import cache_bytes
from megatron_lite.inference.requests import Limits
from megatron_lite.inference.scheduler import Sizes
from megatron_lite.model.transformer import Block
from megatron_lite.serving.application import Office, application
from megatron_lite.serving.batch import Batch
from megatron_lite.serving.comparing import Bench, routes_of
from megatron_lite.serving.comparisons import Comparing
from megatron_lite.serving.connection import connection_of
from megatron_lite.serving.desk import BROKEN, ENDING, Desk
from megatron_lite.serving.judgements import Book, opened_book
from megatron_lite.serving.leading import Messages, Report, Share, follow
from megatron_lite.serving.metrics import Metrics
from megatron_lite.serving.pairing import Pairing, check_questions
from megatron_lite.serving.pieces import Spelling
from megatron_lite.serving.reading import Reader
from megatron_lite.serving.settings import Settings

CONNECTIONS = 1000  # at once; more are turned away with 503
CLOSING_SECONDS = 2  # for connections to end, once all answers are out


@dataclass(frozen=True)
class Served:
    """What a server gives answers of, on every rank. `limits` are the model's own."""

    opened: Opened
    template: ChatTemplate | None
    limits: Limits
    sizes: Sizes


def sizes_of(opened: Opened, rows: int, memory: int) -> Sizes:
    """So many sequences at once, with a cache of so many bytes a rank, or as much as all of them take.

    All ranks call it. Raises UsageError for a cache that cannot hold a sequence of the model's greatest length.
    """
    model = opened.model
    layers = sum(isinstance(unit, Block) for unit in model.stage.units)
    most = max(map(int, opened.words.exchange(str(layers), "serve.layers")))
    one = Sizes(1, rows=rows, budget=max(rows, Sizes.budget))
    block = cache_bytes(model.config.model, model.mesh.tensor.size, most, one, model.dtype.itemsize)
    longest = one.blocks_of(model.longest)
    blocks = min(memory // block, rows * (longest + 1))
    if blocks < longest:
        least = f"{longest * block / 2**30:.3g}"
        raise UsageError(f"--cache-gib {memory / 2**30:.3g}: a sequence of {model.longest} tokens takes {least}")
    return Sizes(blocks, rows=rows, budget=one.budget)


def listening(host: str, port: int) -> socket.socket:
    """Raises UsageError where nobody can listen."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)[0]
        # asyncio sends small pieces at once only where the socket says that it is TCP; else each waits for some 40 ms.
        place = socket.socket(found[0], socket.SOCK_STREAM, socket.IPPROTO_TCP)
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(found[4])
        place.listen(1024)
        return place
    except (OSError, OverflowError) as error:
        raise UsageError(f"--host {host} --port {port}: cannot listen there: {error}") from None


def serve(
    served: Served, settings: Settings, listen: Callable[[], socket.socket], ready: Callable[[str], None],
    comparing: Comparing | None = None,
) -> None:  # fmt: skip
    """On every rank, until rank 0 gets SIGTERM or SIGINT and has drained. `listen` opens rank 0's socket; `ready` is
    told its address.
    """
    opened = served.opened
    engine = Engine(opened.model, served.sizes, opened.tokenizer.decode)
    share, messages = Share(engine), Messages(opened.model.mesh)
    if opened.model.mesh.rank:
        with signals_left_to_others():
            opened.words.exchange("", "serve.ready")
            follow(share, messages, opened.words)
        return
    with ExitStack() as held:
        place = held.enter_context(closing(listen()))
        book = None if comparing is None else held.enter_context(opened_book(comparing))
        lead = Lead(served, settings, Batch(share, messages, opened.words), book)
        lead.check()
        opened.words.exchange("", "serve.ready")
        lead.run(place, ready)


@contextmanager
def signals_left_to_others() -> Iterator[None]:
    """Rank 0 decides when all end, also where a launcher tells every rank."""
    own = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in own}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class Lead:
    """Rank 0: HTTP in the event loop, the model in a thread of its own. With a `book`, people compare answers."""

    served: Served
    settings: Settings
    batch: Batch
    book: Book | None = None
    failure: BaseException | None = None
    told_to_end: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop | None = None

    def check(self) -> None:
        """Before it runs. Raises DataError for questions that the model cannot answer."""
        if self.book is not None:
            check_questions(self._reader(), self.book.comparing)

    def end(self) -> None:
        """As a signal does, from any thread; nothing before it serves, and after it."""
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.told_to_end.set)

    def run(self, place: socket.socket, ready: Callable[[str], None]) -> None:
        """Raises what the model's thread raised."""
        asyncio.run(self._serve(place, ready))
        if self.failure is not None:
            raise self.failure

    async def _serve(self, place: socket.socket, ready: Callable[[str], None]) -> None:
        self.loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "reading") as reading:
            office = self._office(reading)
            server = Server(self._config(office), self.end)
            work = threading.Thread(target=self._work, args=(office.desk, self.loop), name="model", daemon=True)
            work.start()
            serving = asyncio.create_task(server.serve([place]))
            serving.add_done_callback(lambda _: self.told_to_end.set())  # where it cannot serve
            try:
                while not server.started and not serving.done():
                    await asyncio.sleep(0.01)
                host, port = place.getsockname()[:2]
                ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
                await self._drained(office.desk)
            finally:
                server.should_exit = True
                await serving
                self.batch.end()
                await asyncio.to_thread(work.join)

    async def _drained(self, desk: Desk) -> None:
        """When it is told to end and all requests are answered, or their time is over, or the model has failed."""
        await self.told_to_end.wait()
        if self.failure is not None:
            desk.close(BROKEN, at_once=True)
            return
        desk.close(ENDING)
        until = asyncio.get_running_loop().time() + self.settings.drain_seconds
        while not desk.idle and asyncio.get_running_loop().time() < until and self.failure is None:
            await asyncio.sleep(0.02)
        desk.close(ENDING if self.failure is None else BROKEN, at_once=True)

    def _work(self, desk: Desk, loop: asyncio.AbstractEventLoop) -> None:
        """The model's thread."""

        def hear(reports: Sequence[Report]) -> None:
            loop.call_soon_threadsafe(desk.deliver, reports)

        try:
            self.batch.run(hear)
        except BaseException as error:
            self.failure = error
            self.end()

    def _office(self, reading: ThreadPoolExecutor) -> Office:
        opened, settings = self.served.opened, self.settings
        metrics = Metrics(opened.model.mesh.zero.size * self.served.sizes.blocks)
        desk = Desk(self.batch, opened.tokenizer, metrics, self._most)
        return Office(settings, self._reader(), desk, metrics, Spelling(opened.tokenizer), reading)

    def _reader(self) -> Reader:
        served, opened = self.served, self.served.opened
        return Reader(opened.model, opened.tokenizer, served.template, served.limits, self.settings, self._most)

    @property
    def _most(self) -> int:
        """Sequences that are held, running or waiting."""
        return self.served.opened.model.mesh.zero.size * self.served.sizes.rows + self.settings.queue

    def _routes(self, office: Office) -> list[Route]:
        """Beside those that every server has."""
        if self.book is None:
            return []
        return routes_of(Bench(self.book, Pairing(office, self.book.comparing)), office)

    def _config(self, office: Office) -> uvicorn.Config:
        settings = self.settings
        return uvicorn.Config(
            application(office, self._routes(office)), ws="none",
            http=connection_of(settings.header_seconds, settings.unread_seconds),
            lifespan="off", loop="asyncio", log_config=None, log_level="error", access_log=False, server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=CLOSING_SECONDS,
        )  # fmt: skip


class Server(uvicorn.Server):
    """Its signals do not end it at once, and a second one not at all: the drain has an end of its own."""

    def __init__(self, config: uvicorn.Config, end: Callable[[], None]):
        super().__init__(config)
        self._end = end

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._end()
