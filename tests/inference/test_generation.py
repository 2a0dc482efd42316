"""Generation against the whole forward pass of an independent float64 model, which has no cache."""

import pytest
import torch
from support.generation import loaded, saved_model
from support.layouts import Layout
from support.reference import logits as reference_logits

from megatron_lite.errors import DataError, UsageError
from megatron_lite.inference.generation import generate
from megatron_lite.inference.opening import config_to_ask
from megatron_lite.inference.requests import Limits
from megatron_lite.inference.sampling import Sampling
from megatron_lite.inference.scheduler import Row, Sizes
from megatron_lite.model.build import choice_of
from megatron_lite.parallel.zero import TrainedShards

GREEDY = Sampling(temperature=0)
PROMPTS = [[5], [60, 0, 17], [1, 2, 3, 4, 5, 6, 7], [9] * 12]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def case(request, tmp_path_factory):
    checkpoint, weights = saved_model(tmp_path_factory.mktemp("model"), Layout(layers=3, tied=request.param))
    return loaded(checkpoint), weights


def greedy_without_cache(weights, model, prompt: list[int], count: int) -> tuple[list[int], torch.Tensor]:
    """Tokens, and the logits [count, V] they were chosen from."""
    tokens, rows = list(prompt), []
    for _ in range(count):
        rows.append(reference_logits(weights, torch.tensor([tokens]), model)[0, -1])
        tokens.append(int(rows[-1].argmax()))
    return tokens[len(prompt) :], torch.stack(rows)


def with_logits(model, prompts, count: int) -> tuple[list[list[int]], torch.Tensor]:
    """Greedy tokens, and the logits [count, B, V] that the model gave on the way."""
    rows = []

    class Listening(type(model)):
        def next_logits(self, *arguments):
            rows.append(super().next_logits(*arguments))
            return rows[-1]

    listening = Listening(model.config, model.stage, model.mesh)
    return generate(listening, prompts, GREEDY, Limits(count)), torch.stack(rows)


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_greedy_with_the_cache_is_the_whole_forward_pass(case, prompt):
    model, weights = case
    count = model.longest - len(prompt)
    tokens, truth = greedy_without_cache(weights, model.config.model, prompt, count)
    found, rows = with_logits(model, [prompt], count)
    assert found == [tokens]
    torch.testing.assert_close(rows[:, 0], truth, rtol=1e-12, atol=1e-12)


def test_a_batch_of_prompts_of_any_lengths_goes_as_each_alone(case):
    model, weights = case
    found, rows = with_logits(model, PROMPTS, 4)
    for row, prompt in enumerate(PROMPTS):
        tokens, truth = greedy_without_cache(weights, model.config.model, prompt, 4)
        assert found[row] == tokens
        torch.testing.assert_close(rows[:, row], truth, rtol=1e-12, atol=1e-12)


def test_a_rows_end_leaves_the_others_going(case):
    model, weights = case
    alone = [greedy_without_cache(weights, model.config.model, prompt, 4)[0] for prompt in PROMPTS]
    eod = alone[1][2]
    expected = [tokens[: tokens.index(eod)] if eod in tokens else tokens for tokens in alone]
    assert len(expected[1]) < 4 == max(map(len, expected))
    assert generate(model, PROMPTS, GREEDY, Limits(4, eod)) == expected


def test_nothing_goes_past_the_trained_length(case):
    model, _ = case
    found = generate(model, PROMPTS, GREEDY, Limits(1000))
    assert [len(p) + len(f) for p, f in zip(PROMPTS, found, strict=True)] == [model.longest] * len(PROMPTS)


def test_ids_without_a_piece_are_never_drawn(case):
    model, _ = case
    found = generate(model, PROMPTS, Sampling(temperature=5.0), Limits(16, vocab_size=7))
    assert {token for tokens in found for token in tokens} == set(range(7))


def test_a_seed_repeats_and_another_does_not(case):
    model, _ = case
    runs = [generate(model, PROMPTS[:2], Sampling(1.0), Limits(10), seed) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("prompt", "limits", "said"),
    [
        ([], {}, "the prompt has 0 tokens: must have 1 to 15"),
        ([1] * 16, {}, "the prompt has 16 tokens: must have 1 to 15"),
        ([61], {}, "token id 61: model.vocab_size = 61"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens = 0: must be 1 or more"),
        ([1], {"stop_strings": ("",)}, 'stop string "": must have a character'),
        ([1], {"stop_strings": ("a",)}, "stop strings need a tokenizer"),
    ],
)
def test_what_cannot_be_continued_is_refused(case, prompt, limits, said):
    with pytest.raises(UsageError, match=said):
        generate(case[0], [prompt], GREEDY, Limits(**{"max_new_tokens": 1} | limits))


def test_the_model_holds_its_weights_once_and_no_optimizer(tmp_path):
    checkpoint, weights = saved_model(tmp_path, Layout(layers=2, dtype="bfloat16"))
    shards = loaded(checkpoint).stage.shards
    assert not any(isinstance(s, TrainedShards) for s in shards)
    padding = 2 * 3 * 32  # 61 pieces are 64 rows, of the embedding and of the projection
    assert sum(s.compute.numel() for s in shards) == sum(w.numel() for w in weights.values()) + padding
    assert all(w.full.untyped_storage().data_ptr() == s.compute.untyped_storage().data_ptr()
               for s in shards for w in s.weights)  # fmt: skip


def test_the_cache_keeps_no_autograd_graph(case):
    model, _ = case
    cache = model.new_cache(Sizes(2, block=2, budget=64))
    model.next_logits([Row(0, (0,), 0, (2,), (1,), True)], cache)
    assert len(cache.memories) == model.config.model.num_hidden_layers
    for memory in cache.memories.values():
        assert not memory.requires_grad
        places = memory.view(4, 2, 2, 8)  # positions of all blocks, key-value heads, keys and values, elements
        assert (places[2].abs().sum(-1) > 0).all() and not places[[0, 1, 3]].any()


def test_a_configuration_that_is_not_understood_is_bad_data():
    with pytest.raises(DataError, match="the checkpoint's configuration cannot be used here"):
        config_to_ask({"model": {"hidden": 3}}, 1)


def test_a_model_trained_on_kernels_that_are_not_here_runs_on_those_that_are():
    tree = Layout(dtype="bfloat16").config().model_dump(mode="json")
    trained = tree | {"kernels": {"backend": "triton", "attention": "flash_attn"}}
    choice = choice_of(config_to_ask(trained, 1), "cpu")
    assert (choice.backend, choice.attention, choice.optimizer) == ("torch", "sdpa", "torch")
    plain = tree | {"kernels": {"backend": "torch"}}
    assert choice_of(config_to_ask(plain, 1), "cuda").backend == "torch"
