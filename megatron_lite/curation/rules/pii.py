"""Personal data and secrets, masked: each is replaced by a token that says what stood there.

    <EMAIL>         e-mail addresses
    <IP_ADDRESS>    public IPv4 and IPv6 addresses
    <PHONE_NUMBER>  telephone numbers: international and North American ones that the country's plan knows, and others
                    beside a word such as "Tel."
    <CARD_NUMBER>   credit card numbers whose last digit checks
    <IBAN>          bank accounts whose check digits do
    <KEY>           keys and tokens of known forms, private keys, passwords in addresses, and values that look random
                    and are assigned to a name such as `api_key`

What is masked follows Dolma (Soldaini et al. 2024, arXiv 2402.00159, section 4.1.4: e-mail, IP, phone) and StarCoder
(Li et al. 2023, arXiv 2305.06161, section 4: keys, and the form of the tokens). Names and addresses of people are not
found, nor low-entropy passwords, nor national numbers without a word before them. In code, version numbers (1.2.3.4
after "version", in file names, all numbers below 32), documentation and private addresses, example.com and hashes
stay.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import ClassVar

from megatron_lite.curation._lists import PII_PLACES, PiiScanner
from megatron_lite.curation.documents import Document
from megatron_lite.curation.rules.pii_patterns import AT_PLACE, PREFIXES
from megatron_lite.curation.rules.rule import CachedProperties
from megatron_lite.errors import UsageError

TOKENS = {
    "email": "<EMAIL>",
    "ip": "<IP_ADDRESS>",
    "phone": "<PHONE_NUMBER>",
    "card": "<CARD_NUMBER>",
    "iban": "<IBAN>",
    "key": "<KEY>",
}


@dataclass(frozen=True)
class Pii(CachedProperties):
    """Notes how many of each kind were masked as `pii` in the metadata."""

    name: ClassVar[str] = "pii"
    version: ClassVar[int] = 1

    kinds: tuple[str, ...] = tuple(TOKENS)

    def __post_init__(self) -> None:
        if unknown := set(self.kinds) - set(TOKENS):
            raise UsageError(f"rule pii: kinds {', '.join(sorted(unknown))}: there are {', '.join(TOKENS)}")

    def __call__(self, document: Document) -> None:
        text, counts = mask(document.text, self._wanted)
        if counts:
            document.text = text
            document.metadata["pii"] = counts

    @cached_property
    def _wanted(self) -> frozenset[str]:
        return frozenset(self.kinds)


def mask(text: str, kinds: frozenset[str] = frozenset(TOKENS)) -> tuple[str, dict[str, int]]:
    """The text with tokens, and how many were put in, by kind. A text without any is returned as it is.

    Where two things overlap the one that begins first is masked, and what is left of the other is looked at again, so
    that masking a masked text changes nothing.
    """
    counts: dict[str, int] = {}
    while spans := find(text, kinds):
        data, parts, done = text.encode(), [], 0
        for begin, end, kind in spans:
            parts += [data[done:begin], TOKENS[kind].encode()]
            counts[kind] = counts.get(kind, 0) + 1
            done = end
        text = b"".join([*parts, data[done:]]).decode()
    return text, {kind: counts[kind] for kind in TOKENS if kind in counts}


def find(text: str, kinds: frozenset[str]) -> list[tuple[int, int, str]]:
    """What is to be masked, in order and apart: first byte, byte after the last one (of UTF-8), kind."""
    places = scanner().find(text)
    if not places:
        return []
    data = text.encode()
    spans: list[tuple[int, int, str]] = []
    for place, at in places:
        for kind, look in AT_PLACE[PII_PLACES[place]]:
            if kind in kinds and (found := look(data, at)):
                spans.append((*found, kind))
                break
    spans.sort(key=lambda span: (span[0], span[2] != "key", -span[1]))
    apart: list[tuple[int, int, str]] = []
    for span in spans:
        if not apart or span[0] >= apart[-1][1]:
            apart.append(span)
    return apart


@cache
def scanner() -> PiiScanner:
    return PiiScanner(list(PREFIXES))
