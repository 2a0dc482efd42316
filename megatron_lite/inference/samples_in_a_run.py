"""Sample texts of a model in training, between two of its steps: on its own shards, whatever the layout."""

import json
from collections.abc import Sequence

from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.inference.engine import Engine, share_of
from megatron_lite.inference.generation import gathered, sizes_for
from megatron_lite.inference.model import language_model_of
from megatron_lite.inference.requests import Limits, Request
from megatron_lite.inference.sampling import Sampling
from megatron_lite.model.model import Model
from megatron_lite.parallel.pipeline.stage import held


def write_samples(model: Model, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]]) -> list[tuple[str, str]]:
    """(text, why it ended) of each prompt's answer, on every rank, as `train.samples` says. All ranks call it; each
    replica writes its share. Random numbers are those of (train.seed, number of the prompt, position).
    """
    asked, seed, mesh = model.config.train.samples, model.config.train.seed, model.mesh
    assert asked is not None  # who calls it has read the configuration
    limits = Limits(asked.max_new_tokens, tokenizer.eod_id, tokenizer.vocab_size, tokenizer.stop_ids)
    sampling = Sampling(asked.temperature)
    requests = [Request(number, tuple(ids), limits, sampling, seed) for number, ids in enumerate(prompts)]
    with held(model.stage):
        language, mine = language_model_of(model), share_of(requests, mesh)
        engine = Engine(language, sizes_for(mine, language.longest), tokenizer.decode)
        made = [samples[0] for samples in engine.run(mine)]
    replicas = gathered([json.dumps([one.text, one.finish]) for one in made], mesh)
    lines = [replicas[number % len(replicas)][number // len(replicas)] for number in range(len(prompts))]
    return [(text, reason) for text, reason in map(json.loads, lines)]
