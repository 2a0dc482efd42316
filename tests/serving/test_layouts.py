"""Rank 0 serves what all ranks of a layout compute: the same texts as one process's."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch
from support.serving import NAME, chat_ids, offline, running, save_small, served_of

from megatron_lite.checkpoint import open_checkpoint
from megatron_lite.config import resolve
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.inference.opening import Opened, config_to_ask, load_model
from megatron_lite.inference.sampling import Sampling
from megatron_lite.inference.scheduler import Sizes
from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.model.model import schedule_of
from megatron_lite.parallel.collectives import Recorder
from megatron_lite.serve import limits_of, template_of
from megatron_lite.serving.server import Served, serve
from megatron_lite.serving.settings import Settings

TEXTS = ["the model", "reads a shard", "of text", "and writes", "what it learned", "in bytes"]
WAY = {"temperature": 1.3, "seed": 5, "max_tokens": 10}
SIZES = Sizes(40, rows=2)  # of each replica, so that some wait


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("served")
    save_small(directory)
    return directory


def ask_all(address: str) -> list[str]:
    """Many at once, and one that goes away meanwhile."""
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0, timeout=60)

    def ask(text: str) -> str:
        if text.startswith("of"):
            with client.completions.create(model=NAME, prompt=text, stream=True, max_tokens=100, n=2) as stream:
                next(iter(stream))
        if text.startswith("the"):
            chunks = client.completions.create(model=NAME, prompt=text, stream=True, **WAY)
            return "".join(chunk.choices[0].text for chunk in chunks)
        message = {"role": "user", "content": text}
        return client.chat.completions.create(model=NAME, messages=[message], **WAY).choices[0].message.content

    with ThreadPoolExecutor(len(TEXTS)) as pool:
        return list(pool.map(ask, TEXTS))


def on_rank(base: Path, overrides: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Rank 0's texts, and the sites of this rank's messages of the server, in order."""
    recorder = Recorder()
    world = torch.distributed.get_world_size()
    checkpoint = open_checkpoint(base / NAME, build_mesh(MeshShape(data=world), torch.device("cpu")))
    config = config_to_ask(checkpoint.index.config, world, overrides)
    resolved = resolve(config, world)
    placement = schedule_of(config, resolved, resolved.microbatches).placement
    mesh = build_mesh(MeshShape.of(resolved), torch.device("cpu"), placement, recorder)
    model = load_model(checkpoint, mesh, overrides)
    tokenizer = SentencePieceTokenizer(base / "small.model")
    served = Served(Opened(model, tokenizer, mesh.words), template_of(tokenizer, None), limits_of(tokenizer), SIZES)
    found: list[str] = []
    if mesh.rank:
        serve(served, Settings(NAME), fail, fail)
    else:
        mesh.words.exchange("", "serve.ready")
        with running(served, Settings(NAME)) as server:
            time.sleep(0.2)  # the others wait, and hear from rank 0 ten times
            found = ask_all(server.address)
    return found, [event.site for event in recorder.events if event.kind == "issue" and event.site.startswith("serve.")]


def fail(*_: object) -> None:
    raise AssertionError("only rank 0 listens")


@pytest.mark.parametrize(
    ("world", "overrides", "sites"),
    [
        (4, ("parallel.tensor=2", "parallel.pipeline=2"), set()),
        (2, (), {"serve.report_sizes", "serve.reports"}),
    ],
    ids=["tensor 2 x pipeline 2", "data 2"],
)  # fmt: skip
def test_a_layout_serves_one_processs_texts(ranks, base, world, overrides, sites):
    served = served_of(base / NAME, SentencePieceTokenizer(base / "small.model"))
    tokenizer = served.opened.tokenizer
    prompts = [tuple(tokenizer.encode_prompt(TEXTS[0])), *(chat_ids(tokenizer, ("user", text)) for text in TEXTS[1:])]
    truth = [offline(served, prompt, Sampling(1.3), 10, seed=5)[0].text for prompt in prompts]
    answers = ranks.run(on_rank, world, base, overrides)
    assert answers[0][0] == truth
    for _, said in answers:
        assert set(said) == {"serve.size", "serve.orders", *sites}
        assert said[:3].count("serve.size") >= 1 and "serve.orders" not in said[:3]  # nothing to do yet
