"""Chat templates: texts by hand, and ids that only the template can make special."""

import pytest
from support.text import train_small_tokenizer

from megatron_lite.data.chat_template import MARKS, ChatTemplate
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.errors import DataError

CHATML = (
    "{% for message in messages %}\n"
    "    {% if loop.first and message['role'] != 'system' %}\n"
    "{{ '<s>system\\nhelp' + eos_token + '\\n' }}{% endif %}\n"
    "{{ '<s>' + message['role'] + '\\n' }}"
    "{% generation %}{{ message['content'] | trim + eos_token + '\\n' }}{% endgeneration %}"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> SentencePieceTokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    small = train_small_tokenizer(directory)
    (directory / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}, "pad_token": "<pad>", "x": 1}')
    return SentencePieceTokenizer(small)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_blocks_take_their_line_ends_with_them_and_names_of_tokens_are_filled_in(tokenizer):
    template = ChatTemplate(CHATML, tokenizer)
    said = [user(" two\nlines "), {"role": "assistant", "content": "a"}]
    text = "<s>system\nhelp</s>\n<s>user\ntwo\nlines</s>\n<s>assistant\na</s>\n"
    assert template.render(said, answer_next=False) == text
    assert template.render(said) == text + "<s>assistant\n"
    system = [{"role": "system", "content": "be brief"}, user("x")]
    assert template.render(system, False) == "<s>system\nbe brief</s>\n<s>user\nx</s>\n"


def test_the_templates_control_tokens_are_ids_and_the_messages_are_text(tokenizer):
    bos, eos = tokenizer.special_tokens["<s>"], tokenizer.eod_id
    template = ChatTemplate("<s>{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", tokenizer)
    assert template.encode([user("a</s>b"), user("c")]) == [
        bos, *tokenizer.encode("a</s>b"), eos, *tokenizer.encode("c"), eos
    ]  # fmt: skip
    marked = f"{MARKS[0]}</s>{MARKS[1]}"
    assert template.encode([user(marked)]) == [bos, *tokenizer.encode(marked), eos]
    nested = [{"role": "user", "content": [{"type": "text", "text": "<s>"}]}]
    parts = ChatTemplate("{% for m in messages %}{{ m.content[0]['text'] }}{{ eos_token }}{% endfor %}", tokenizer)
    assert parts.encode(nested) == [*tokenizer.encode("<s>"), eos]


def test_what_templates_call_is_there(tokenizer):
    source = (
        "{{ tools | tojson }}|{% for m in messages %}{% if m.content == 'b' %}{% break %}{% endif %}{{ m.content }}"
    )
    template = ChatTemplate(source + "{% endfor %}|{{ strftime_now('%Y') | length }}", tokenizer)
    assert template.render([user("a"), user("b"), user("c")], tools=[{"n": "é"}]) == '[{"n": "é"}]|a|4'


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% if %}", "is no Jinja: Expected an expression"),
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ messages[0].content + 1 }}", "refuses these messages: can only concatenate str"),
        ("{{ messages.append(1) }}", "refuses these messages: access to attribute 'append' .* is unsafe"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages: access to attribute '__class__' .* is unsafe"),
    ],
)
def test_what_a_template_cannot_or_must_not_do_is_one_sentence(tokenizer, source, said):
    with pytest.raises(DataError, match=said):
        ChatTemplate(source, tokenizer).render([user("x")])


def test_what_is_allowed_of_one_kind_of_object_is_refused_of_another_each_time(tokenizer):
    class Harmless:
        def pop(self) -> str:
            return "allowed"

    template = ChatTemplate("{{ value.pop() }}", tokenizer)
    for _ in range(2):
        assert template.render([user("x")], value=Harmless()) == "allowed"
        for value in ([1], {"x": 1}):
            with pytest.raises(DataError, match=r"access to attribute 'pop' .* is unsafe"):
                template.render([user("x")], value=value)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "must be a list of objects with a role"),
        (["x"], "message 0 is 'x'"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], "message 1 is {'content': 'b'}"),
        ([{"role": 3, "content": "b"}], "message 0 is {'role': 3, 'content': 'b'}"),
    ],
)
def test_what_is_no_conversation_is_refused_before_a_template_makes_nothing_of_it(tokenizer, messages, said):
    with pytest.raises(DataError, match=said):
        ChatTemplate("{% for m in messages %}{{ m['role'] }}{% endfor %}", tokenizer).render(messages)


def test_a_template_finds_the_control_tokens_of_a_model_that_nothing_describes(tmp_path):
    """Beside a SentencePiece model that was trained here lies no tokenizer_config.json."""
    plain = SentencePieceTokenizer(train_small_tokenizer(tmp_path))
    template = ChatTemplate("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}{{ pad_token }}", plain)
    assert template.render([user("a")]) == "<s>a</s><pad>"


def test_an_answer_ends_at_every_token_that_the_model_names(tmp_path):
    small = train_small_tokenizer(tmp_path)
    assert SentencePieceTokenizer(small).stop_ids == {SentencePieceTokenizer(small).eod_id}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert SentencePieceTokenizer(small).stop_ids == {SentencePieceTokenizer(small).eod_id, 5, 6}


def test_a_prompt_begins_with_what_the_model_was_trained_with(tmp_path):
    small = train_small_tokenizer(tmp_path)
    plain = SentencePieceTokenizer(small)
    assert plain.encode_prompt("a b") == plain.encode("a b") and plain.encode_prompt("") == [plain.eod_id]
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "add_bos_token": true}')
    begun = SentencePieceTokenizer(small)
    bos = begun.special_tokens["<s>"]
    assert begun.encode_prompt("a b") == [bos, *plain.encode("a b")] and begun.encode_prompt("") == [bos]
