"""Chat templates in the style of public ones, and a tokenizer that has the control tokens of all."""

import json
from pathlib import Path

from support.text import train_byte_level

from megatron_lite.data.json_tokenizer import JsonTokenizer

CONTROL = (
    "<s>", "</s>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>",
    "[TOOL_CALLS]",
)  # fmt: skip
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# In each the assistant's branch is written so that `tagged` can put a generation part round what it says.
PLAIN = {
    "chatml": CHATML,
    "llama2": (
        "{% for m in messages %}{% if m.role == 'system' %}{% set ns = m.content %}"
        "{{ '<s>[INST] <<SYS>>\n' + m.content + '\n<</SYS>> [/INST] ok </s>' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' }}{{ m.content.strip() + ' </s>' }}"
        "{% else %}{{ '<s>[INST] ' + m.content.strip() + ' [/INST]' }}{% endif %}{% endfor %}"
    ),
    "llama3": (
        "{{ '<s>' }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
        "{% if m.role == 'assistant' %}{{ m.content.strip() + '<|eot_id|>' }}"
        "{% else %}{{ m.content.strip() + '<|eot_id|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}"
        "{% if m.role == 'assistant' %}{{ m.content + '</s>' }}{% else %}{{ m.content + '</s>' }}{% endif %}{{ '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ '<s>' }}{% for m in messages %}"
        "{% if m.role == 'assistant' %}{{ '<start_of_turn>model\n' }}{{ m.content.strip() + '<end_of_turn>' }}"
        "{{ '\n' }}"
        "{% else %}{{ '<start_of_turn>user\n' + m.content.strip() + '<end_of_turn>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ '<s>' }}{% for m in messages %}"
        "{% if m.role == 'assistant' and m.tool_calls %}"
        "{{ '[TOOL_CALLS]' + (m.tool_calls | map(attribute='function') | list | tojson) + '</s>' }}"
        "{% elif m.role == 'assistant' %}{{ m.content + '</s>' }}"
        "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}"
        "{% else %}{{ '[INST]' + m.content + '[/INST]' }}{% endif %}{% endfor %}"
    ),
}  # fmt: skip
SAID = (
    "{{ m.content + '</s>' }}{% else %}", "{{ m.content.strip() + '</s>' }}", "{{ m.content.strip() + ' </s>' }}",
    "{{ m.content.strip() + '<|eot_id|>' }}{% else %}", "{{ m.content.strip() + '<end_of_turn>' }}",
    "{{ m.content + '</s>' }}{% elif m.role == 'tool'", "{{ '[TOOL_CALLS]' + (m.tool_calls | map(attribute='function')"
    " | list | tojson) + '</s>' }}",
)  # fmt: skip


def tagged(source: str) -> str:
    """With a generation part round what the assistant says, to the end of its turn."""
    if source == CHATML:
        return source.replace(
            "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}",
            "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
            "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
            "{{ '\n' }}",
        )
    for said in SAID:
        inside = said[: said.index("}}") + 2]
        source = source.replace(said, "{% generation %}" + inside + "{% endgeneration %}" + said[len(inside) :], 1)
    return source


TEMPLATES = {**PLAIN, **{f"{name}, tagged": tagged(source) for name, source in PLAIN.items()}}


def tokenizer_directory(directory: Path) -> Path:
    """A byte-level tokenizer with all of CONTROL; <|im_end|> is end of document and padding."""
    import tokenizers  # of few tests

    train_byte_level(directory, pad_token="<|im_end|>", chat_template=CHATML)
    path = str(directory / "tokenizer.json")
    made = tokenizers.Tokenizer.from_file(path)
    made.add_special_tokens(list(CONTROL))
    made.save(path)
    return directory


def spelled(tokenizer: JsonTokenizer, ids: list[int]) -> str:
    """The text of ids, control tokens by their names."""
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    runs: list[str | list[int]] = []
    for token in ids:
        if token in names:
            runs.append(names[token])
        elif runs and isinstance(runs[-1], list):
            runs[-1].append(token)
        else:
            runs.append([token])
    return "".join(run if isinstance(run, str) else tokenizer.decode(run) for run in runs)


COMPARED = ("one turn", "three turns", "system")  # transformers makes control tokens of a text that has their names
DIALOGUES = json.loads((Path(__file__).parent / "dialogues.json").read_text(encoding="utf-8"))
