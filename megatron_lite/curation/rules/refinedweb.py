"""RefinedWeb's line rules: Penedo et al. 2023 (arXiv 2306.01116), appendix G.2.

Lines mainly in capitals, of numbers alone, that count ("3 likes") or that hold one word are cut; from short lines
what menus and buttons left is cut. A document is dropped if the words of such lines are more than 5 % of its words.

The paper says "mainly" and gives one example a pattern: that "mainly" is more than half of the letters, and the lists
of phrases, are this project's. Lines without any word (empty ones, rulers) are left, so paragraphs stay apart.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from megatron_lite.curation._text import RefinedWebRules, refinedweb_lines
from megatron_lite.curation.documents import Document, Drop
from megatron_lite.curation.rules.rule import CachedProperties, check

COUNTERS = (
    "like likes share shares comment comments view views reply replies answer answers vote votes point points "
    "follower followers retweet retweets repost reposts read reads download downloads rating ratings review reviews"
).split()
STARTS = ("sign in", "sign-in", "log in", "login", "sign up", "sign-up", "register", "skip to content", "skip to main")
ENDS = ("read more...", "read more…", "read more", "continue reading", "learn more", "see more", "show more", "more...")
ANYWHERE = ("items in cart", "item in cart", "items in your cart", "add to cart", "add to wishlist", "share this:")


@dataclass(frozen=True)
class RefinedWebLineRules(CachedProperties):
    name: ClassVar[str] = "refinedweb"
    version: ClassVar[int] = 1

    max_flagged_words: float | None = 0.05
    max_uppercase: float = 0.5
    short_line_words: int = 10
    counters: tuple[str, ...] = tuple(COUNTERS)
    starts: tuple[str, ...] = STARTS
    ends: tuple[str, ...] = ENDS
    anywhere: tuple[str, ...] = ANYWHERE

    def __call__(self, document: Document) -> Drop | None:
        found = refinedweb_lines(document.text, self.line_rules)
        share = found.flagged_words / max(found.words, 1)
        if drop := check("refinedweb.flagged_words", share, most=self.max_flagged_words):
            return drop
        document.text = found.text
        return None

    @cached_property
    def line_rules(self) -> RefinedWebRules:
        return RefinedWebRules(
            max_uppercase=self.max_uppercase,
            short_words=self.short_line_words,
            counters=self.counters,
            starts=self.starts,
            ends=self.ends,
            anywhere=self.anywhere,
        )
