"""kitoken in SentencePiece's place: the same ids, several times as fast, and proof of that before it is used.

It is a library of its own that reads SentencePiece's models, so nobody promises that it agrees with it on every model
and text. `fast_tokenizer` compares the two on the texts at hand and on ADVERSARIAL ones, and hands SentencePiece back
where they differ anywhere.
"""

from collections.abc import Iterable

from megatron_lite.data.tokenizer import Tokenizer

_RUN = 3000
ADVERSARIAL = (
    "",
    " ",
    "  two  and   three   spaces  ",
    "<s>a</s><unk><pad><|user|><|end|><|fim_prefix|><|reserved_3|><0x0A>",
    "a▁b ▁▁ ▁c",
    "a\0b\0\0 \0",
    "\u0301\u0301a\u0301 \u0301e\u0301é\u0300\u0316",
    "\ufeffa\ufeff\u2028\u2029\u00a0\u3000\u200b\u200d",
    "▅ \u2585\ufffd\ufffe\U0010ffff\U000e0001",
    "tabs\t\tand\r\nlines\r\n\n\n\x0b\x0c\x85end\r",
    "3.14159 1,234,567 0x7fff ١٢٣ １２３ ½ ²",
    "日本語の文章です。한국어 русский עברית ไทย हिन्दी 🙂👩‍👩‍👧🏽",
    "ﬁ Å Å ｶﾞ ① ㌔ Ⅷ",
    "don't \u2019tis co-operate e.g. U.S.A. http://a.b/c?d=e&f#g user@host",
    "def f(x):\n    if x:\n        return {'a': [1, 2]}\n",
    "a" * _RUN,
    " " * _RUN,
    "\n" * _RUN,
    "ab" * _RUN,
    "0" * _RUN,
    "\u0301" * _RUN,
    "▁" * _RUN,
    "🙂" * _RUN,
)


class FastTokenizer(Tokenizer):
    """A tokenizer whose `encode` is kitoken's. Raises ImportError without kitoken."""

    def __init__(self, path: str):
        super().__init__(path)
        from kitoken import Kitoken  # only text that is binarized needs it

        self._kitoken = Kitoken.from_sentencepiece_file(self.path)

    def _encode(self, text: str) -> list[int]:
        return self._kitoken.encode(text, False)  # False: names of special tokens are text


def fast_tokenizer(path: str, texts: Iterable[str]) -> tuple[Tokenizer, str]:
    """The tokenizer to binarize with, and a line that says which and why."""
    reference = Tokenizer(path)
    try:
        fast = FastTokenizer(path)
    except Exception as error:
        return reference, f"tokenizing with SentencePiece: kitoken does not read {path} ({error!r})"
    compared = 0
    for text in (*ADVERSARIAL, *texts):
        if differ(reference, fast, text):
            return reference, f"tokenizing with SentencePiece: kitoken gives other ids for {text[:60]!r}"
        compared += 1
    return fast, f"tokenizing with kitoken: SentencePiece's ids on {compared} texts"


def differ(reference: Tokenizer, fast: Tokenizer, text: str) -> bool:
    """Whether two tokenizers give other ids for a text; one that fails does."""
    try:
        return fast.encode(text) != reference.encode(text)
    except Exception:
        return True
