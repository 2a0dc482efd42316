"""The official client drives every endpoint of a server over a small model."""

import json
import re
from functools import cache

import openai
import pytest
from support.serving import LONGEST, NAME, chat_ids, offline, running

from megatron_lite.inference.sampling import Sampling
from megatron_lite.serving.settings import Settings

MESSAGES = [("system", "the model"), ("user", "reads a shard")]
CHAT = [{"role": role, "content": content} for role, content in MESSAGES]
WAY = {"temperature": 1.3, "seed": 5, "max_tokens": 12}


@pytest.fixture(scope="module")
def client(served):
    with running(served, Settings(NAME)) as server:
        yield openai.OpenAI(base_url=f"{server.address}/v1", api_key="any", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def tokenizer(served):
    return served.opened.tokenizer


def refused(status: int, call) -> dict:
    """The error object."""
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    assert caught.value.status_code == status
    return caught.value.body


def test_models_are_listed_and_shown(client):
    assert [one.id for one in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).max_model_len == LONGEST
    assert refused(404, lambda: client.models.retrieve("other"))["code"] == "model_not_found"
    body = refused(404, lambda: client.completions.create(model="other", prompt="x"))
    assert (body["param"], body["code"]) == ("model", "model_not_found")


def test_a_completion_is_what_offline_generation_with_its_seed_writes(client, served, tokenizer):
    prompt = tuple(tokenizer.encode_prompt("the model reads"))
    truth = offline(served, prompt, Sampling(1.3), 12, seed=5, n=2)
    for given in ("the model reads", list(prompt)):
        made = client.completions.create(model=NAME, prompt=given, n=2, **WAY)
        assert [one.text for one in made.choices] == [one.text for one in truth]
        assert [one.finish_reason for one in made.choices] == [one.finish for one in truth]
        assert [one.index for one in made.choices] == [0, 1]
        sent = sum(len(one.answer) for one in truth)
        usage = made.usage
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (
            len(prompt), sent, len(prompt) + sent,
        )  # fmt: skip
        assert made.id.startswith("cmpl-") and made.object == "text_completion" and made.model == NAME


def test_a_chat_is_what_offline_generation_of_the_filled_template_writes(client, served, tokenizer):
    (truth,) = offline(served, chat_ids(tokenizer, *MESSAGES), Sampling(1.3), 12, seed=5)
    parts = [{"role": "system", "content": [{"type": "text", "text": "the model"}]}, CHAT[1]]
    for messages in (CHAT, parts):
        made = client.chat.completions.create(model=NAME, messages=messages, **WAY)
        (choice,) = made.choices
        assert (choice.message.content, choice.finish_reason) == (truth.text, truth.finish)
        assert choice.message.role == "assistant"
        assert made.id.startswith("chatcmpl-") and made.object == "chat.completion"


def test_every_way_of_drawing_reaches_the_sampler(client, served, tokenizer):
    prompt = tuple(tokenizer.encode_prompt("bytes"))
    bias = {"20": 3.0, "30": -100.0}
    way = Sampling(1.4, 50, 0.95, 0.001, 1.2, 0.3, 0.2, {20: 3.0, 30: -100.0})
    (truth,) = offline(served, prompt, way, 20, seed=-7, stops=("e",))
    made = client.completions.create(
        model=NAME, prompt="bytes", temperature=1.4, top_p=0.95, presence_penalty=0.3, frequency_penalty=0.2,
        logit_bias=bias, max_tokens=20, seed=-7, stop="e",
        extra_body={"top_k": 50, "min_p": 0.001, "repetition_penalty": 1.2},
    )  # fmt: skip
    assert (made.choices[0].text, made.choices[0].finish_reason) == (truth.text, truth.finish)
    assert "e" not in made.choices[0].text
    greedy = [client.completions.create(model=NAME, prompt="bytes", temperature=0, seed=s).choices[0] for s in (1, 2)]
    assert greedy[0].text == greedy[1].text == offline(served, prompt, Sampling(0), 16)[0].text


def test_several_prompts_are_answered_in_their_order(client, served, tokenizer):
    texts = ["the model", "a shard", "the model"]
    made = client.completions.create(model=NAME, prompt=texts, n=2, echo=True, **WAY)
    assert [one.index for one in made.choices] == list(range(6))
    for place, text in enumerate(texts):
        prompt = tuple(tokenizer.encode_prompt(text))
        truth = offline(served, prompt, Sampling(1.3), 12, seed=5, n=2, drawn_as=place)
        assert [one.text for one in made.choices[2 * place : 2 * place + 2]] == [text + one.text for one in truth]


@pytest.mark.parametrize("stop", [None, ["e", "an", "wr"]])
def test_streamed_pieces_joined_are_the_whole_answer(client, stop):
    way = {**WAY, "max_tokens": 30, "n": 3, "stop": stop, "model": NAME, "stream_options": {"include_usage": True}}
    plain = {name: value for name, value in way.items() if name != "stream_options"}
    whole = client.completions.create(prompt="the model", logprobs=2, **plain)
    *chunks, last = client.completions.create(prompt="the model", logprobs=2, stream=True, **way)
    assert all(chunk.usage is None for chunk in chunks) and (last.choices, last.usage) == ([], whole.usage)
    assert {chunk.id for chunk in chunks} == {last.id}
    for truth in whole.choices:
        mine = [choice for chunk in chunks for choice in chunk.choices if choice.index == truth.index]
        assert "".join(one.text for one in mine) == truth.text
        assert [one.finish_reason for one in mine if one.finish_reason] == [truth.finish_reason]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [value for one in mine for value in getattr(one.logprobs, name)] == getattr(truth.logprobs, name)

    whole = client.chat.completions.create(messages=CHAT, logprobs=True, top_logprobs=2, **plain)
    *chunks, last = client.chat.completions.create(messages=CHAT, logprobs=True, top_logprobs=2, stream=True, **way)
    assert last.usage == whole.usage
    for truth in whole.choices:
        mine = [choice for chunk in chunks for choice in chunk.choices if choice.index == truth.index]
        assert mine[0].delta.role == "assistant"
        assert "".join(one.delta.content or "" for one in mine) == truth.message.content
        entries = [entry for one in mine if one.logprobs for entry in one.logprobs.content]
        assert entries == truth.logprobs.content


def test_a_stream_without_usage_has_none(client):
    chunks = list(client.completions.create(model=NAME, prompt="x", stream=True, **WAY))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_log_probabilities_are_the_models_own(client, served, tokenizer):
    prompt = tuple(tokenizer.encode_prompt("the model"))
    (truth,) = offline(served, prompt, Sampling(1.3), 12, seed=5, log_probabilities=3)
    sent = truth.tokens[: len(truth.answer)]
    (made,) = client.completions.create(model=NAME, prompt="the model", logprobs=3, **WAY).choices
    assert made.logprobs.token_logprobs == [token.log_probability for token in sent]
    for token, likely in zip(sent, made.logprobs.top_logprobs, strict=True):
        assert set(likely.values()) <= {value for _, value in token.most_likely}
        assert max(likely.values()) == token.most_likely[0][1]
    broken = "\N{REPLACEMENT CHARACTER}"
    if not any(broken in text for text in made.logprobs.tokens):
        assert "".join(made.logprobs.tokens) == made.text
    lengths = [0]
    for text in made.logprobs.tokens:
        lengths.append(lengths[-1] + len(text))
    assert broken in "".join(made.logprobs.tokens) or made.logprobs.text_offset == lengths[:-1]
    (plain,) = client.completions.create(model=NAME, prompt="the model", **WAY).choices
    assert plain.logprobs is None and plain.text == made.text


def test_a_stop_strings_tokens_are_not_counted(client):
    way = {"model": NAME, "prompt": "the model", "logprobs": 0, **WAY, "max_tokens": 30}
    (whole,) = client.completions.create(**way).choices
    stop = whole.text[5:8]
    made = client.completions.create(stop=stop, **way)
    (cut,) = made.choices
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    assert made.usage.completion_tokens == len(cut.logprobs.tokens)
    begin = [place for place in whole.logprobs.text_offset if place < len(cut.text)]
    assert cut.logprobs.text_offset == begin


def test_tools_are_rendered(client, served, tokenizer):
    tool = {"type": "function", "function": {"name": "find</s>", "parameters": {"type": "object"}}}
    made = client.chat.completions.create(model=NAME, messages=CHAT, tools=[tool], **WAY)
    text = json.dumps([tool])
    prompt = (*tokenizer.encode(text), tokenizer.eod_id, *chat_ids(tokenizer, *MESSAGES))
    assert made.usage.prompt_tokens == len(prompt)  # the name in it did not become the end of a document
    assert made.choices[0].message.content == offline(served, prompt, Sampling(1.3), 12, seed=5)[0].text
    none = client.chat.completions.create(model=NAME, messages=CHAT, tools=[tool], tool_choice="none", **WAY)
    assert none.usage.prompt_tokens == len(chat_ids(tokenizer, *MESSAGES))


UNSUPPORTED = {
    "best_of": 2, "suffix": "x", "user": "me", "guided_json": {}, "ignore_eos": True, "stop_token_ids": [3],
}  # fmt: skip
CHAT_UNSUPPORTED = {
    "user": "me", "functions": [], "parallel_tool_calls": True, "reasoning_effort": "low", "store": True,
    "service_tier": "auto", "metadata": {}, "audio": {}, "prediction": {}, "echo": True, "nonsense": 1,
}  # fmt: skip


@cache
def answered(client, name, value, chat) -> dict:
    create = client.chat.completions.create if chat else client.completions.create
    asked = {"messages": CHAT} if chat else {"prompt": "x"}
    return refused(400, lambda: create(model=NAME, extra_body={name: json.loads(value)}, **asked))


@pytest.mark.parametrize("chat", [False, True])
def test_a_parameter_that_is_not_supported_is_refused_by_name(client, chat):
    for name, value in (CHAT_UNSUPPORTED if chat else UNSUPPORTED).items():
        body = answered(client, name, json.dumps(value), chat)
        assert body["param"] == name and body["code"] == "unsupported_parameter"
        assert body["message"] == f"{name} is not supported by this server"
        assert body["type"] == "invalid_request_error"


WRONG = [
    ({"temperature": -1}, "temperature"), ({"temperature": "1"}, "temperature"), ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"), ({"n": True}, "n"), ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": LONGEST}, "max_tokens"),
    ({"stop": [""]}, "stop"), ({"stop": list("abcdefghijklmnopq")}, "stop"),
    ({"logit_bias": {"9999": 1}}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias"), ({"seed": 2**63}, "seed"), ({"presence_penalty": 3}, "presence_penalty"),
    ({"stream_options": {"include_usage": True}}, "stream_options"), ({"model": 5}, "model"),
    ({"prompt": [[]]}, "prompt"), ({"prompt": [9999]}, "prompt"),
    ({"prompt": "the model " * LONGEST}, "prompt"), ({"n": 128, "prompt": ["a"] * 9}, "n"),
    ({"prompt": None}, "prompt"),
    ({"logprobs": 21}, "logprobs"), ({"logprobs": 1, "echo": True}, "echo"), ({"prompt": [1.5]}, "prompt"),
]  # fmt: skip


def test_values_out_of_range_are_refused_by_the_parameters_name(client):
    for changes, name in WRONG:
        asked = {"model": NAME, "prompt": "x"} | changes
        body = refused(400, lambda asked=asked: client.post("/completions", body=asked, cast_to=object))
        assert body["param"].partition("[")[0].partition(".")[0] == name, (changes, body)
        assert re.match(r"[a-z_]+|the prompt", body["message"])


CHAT_WRONG = [
    ({"messages": []}, "messages"), ({"messages": [{"role": "x", "content": "y"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"), ({"top_logprobs": 3}, "top_logprobs"),
    ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens"), ({"tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0].name"),
    ({"messages": [{"role": "user", "content": "a shard " * LONGEST}]}, "messages"),
    ({"messages": [{"role": "user", "content": "".join(map(chr, range(0xFDD0, 0xFDF0)))}]}, "messages"),
]  # fmt: skip


def test_conversations_that_cannot_be_are_refused_by_name(client):
    for changes, name in CHAT_WRONG:
        asked = {"model": NAME, "messages": CHAT} | changes
        body = refused(400, lambda asked=asked: client.post("/chat/completions", body=asked, cast_to=object))
        assert body["param"] == name, (changes, body)
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    body = refused(400, lambda: client.chat.completions.create(model=NAME, messages=image))
    assert body["param"].startswith("messages[0].content")
    text = client.chat.completions.create(model=NAME, messages=CHAT, response_format={"type": "text"}, **WAY)
    assert text.choices[0].message.content
