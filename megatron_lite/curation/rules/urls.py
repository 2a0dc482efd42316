"""Addresses whose documents are dropped: listed ones, and those that hold words of a list.

RefinedWeb (Penedo et al. 2023, arXiv 2306.01116, section 3.1.1 and appendix G.1): lists of domains (UT1's), and words
in the address, of three strengths: a strict one counts inside other words and across marks, a hard one as a whole
word, and of soft ones it takes two. Its words are not published; those here are this project's, few and for adult
sites alone.
"""

import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import numpy as np

from megatron_lite.curation._lists import address_hash, listed_hashes
from megatron_lite.curation.documents import Document, Drop
from megatron_lite.curation.rules.rule import CachedProperties, check, check_files

STRICT = tuple(
    "xvideos xhamster pornhub youporn redtube brazzers chaturbate livejasmin freeporn pornstar pornvideo pornmovie "
    "gangbang cumshot blowjob camgirls shemale".split()
)
HARD = tuple("porn porno pornos xxx xnxx orgy orgies milf milfs hentai bukkake".split())
SOFT = tuple(
    "sex sexy webcam webcams cam cams camgirl escort escorts erotic erotica erotik nude nudes naked adult adults "
    "fetish bdsm swinger swingers hookup hookups lingerie stripper strippers amateur amateurs uncensored nsfw "
    "hardcore".split()
)
NO_LETTER = re.compile(r"[^a-z0-9]+")
MOST_SEGMENTS = 16  # of a path that are looked up


@dataclass(frozen=True)
class Urls(CachedProperties):
    """Documents without an address pass."""

    name: ClassVar[str] = "urls"
    version: ClassVar[int] = 1

    blocked: tuple[str, ...] = ()  # files of domains and addresses, one a line (csrc/blocklist.h)
    strict: tuple[str, ...] = STRICT
    hard: tuple[str, ...] = HARD
    soft: tuple[str, ...] = SOFT
    max_soft: int | None = 1

    def __post_init__(self) -> None:
        check_files("urls.blocked", self.blocked)

    def __call__(self, document: Document) -> Drop | None:
        if not document.url:
            return None
        url = document.url.lower()
        return self._find_blocked(url) or self._find_words(url)

    def _find_blocked(self, url: str) -> Drop | None:
        if not self.blocked:
            return None
        addresses = parents(url)
        hashes = np.array([address_hash(address) for address in addresses], np.uint64)
        for file in self.blocked:
            listed = load_list(file)
            places = np.searchsorted(listed, hashes)
            for address, place, hash in zip(addresses, places, hashes, strict=True):
                if place < len(listed) and listed[place] == hash:
                    return Drop("urls.blocked", f"{address} stands in {file}")
        return None

    def _find_words(self, url: str) -> Drop | None:
        if found := self._strict_pattern.search(NO_LETTER.sub("", url)):
            return Drop("urls.strict", f"{found[0]!r} in {url}")
        words = NO_LETTER.split(url)
        if hard := next((word for word in words if word in self._hard_words), None):
            return Drop("urls.hard", f"the word {hard!r} in {url}")
        soft = sorted(self._soft_words.intersection(words))
        if drop := check("urls.soft", len(soft), most=self.max_soft):
            return Drop(drop.rule, f"{drop.detail}: {', '.join(soft)} in {url}")
        return None

    @cached_property
    def _strict_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(NO_LETTER.sub("", word.lower()) for word in self.strict) or r"(?!)")

    @cached_property
    def _hard_words(self) -> frozenset[str]:
        return frozenset(word.lower() for word in self.hard)

    @cached_property
    def _soft_words(self) -> frozenset[str]:
        return frozenset(word.lower() for word in self.soft)


def parents(url: str) -> list[str]:
    """What a list may name to mean this address: its host, the domains above that, and its path from the host on."""
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        host = (parts.hostname or "").rstrip(".").removeprefix("www.")
    except ValueError:
        return []
    if not host:
        return []
    labels = host.split(".")
    domains = [".".join(labels[i:]) for i in range(max(1, len(labels) - 1))]
    segments = [segment for segment in parts.path.split("/") if segment][:MOST_SEGMENTS]
    paths = ["/".join([host, *segments[: i + 1]]) for i in range(len(segments))]
    return [*domains, *paths, *([f"{paths[-1] if paths else host}?{parts.query}"] if parts.query else [])]


@cache
def load_list(file: str) -> np.ndarray:
    """The hashes of a list's addresses, ascending (8 bytes each: two of 2^64 are one by chance)."""
    return listed_hashes(Path(file).read_bytes())
