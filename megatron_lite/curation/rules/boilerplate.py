"""Lines that sites put on every page: notices on cookies, policies and JavaScript.

C4 cuts lines with such phrases whatever their length, and so paragraphs that speak of JavaScript. This rule is for
sources that C4's rules do not see: it cuts short lines alone, and needs more than the bare word.
"""

from dataclasses import dataclass
from typing import ClassVar

from megatron_lite.curation._text import drop_lines_with
from megatron_lite.curation.documents import Document
from megatron_lite.curation.rules.c4 import POLICY_PHRASES

PHRASES = (
    *POLICY_PHRASES,
    "cookie settings",
    "accept cookies",
    "accept all cookies",
    "enable javascript",
    "javascript is disabled",
    "javascript is required",
    "javascript must be enabled",
    "turn on javascript",
    "requires javascript",
    "all rights reserved",
)


@dataclass(frozen=True)
class BoilerplateLines:
    name: ClassVar[str] = "boilerplate"
    version: ClassVar[int] = 1

    max_words: int = 30
    phrases: tuple[str, ...] = PHRASES

    def __call__(self, document: Document) -> None:
        found = drop_lines_with(document.text, self.phrases, self.max_words)
        if found.dropped:
            document.text = found.text
