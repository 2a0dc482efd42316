"""The comment at the head of a source file that holds its licence or copyright, cut.

OpenCoder (Huang et al. 2024, arXiv 2411.04905, section 2.1) cuts such comments: more than 15 % of files have one, and
they are much the same. Put this rule after `licence`, which notes what the comment says. A first line that a machine
reads (#!, an encoding, <?php) stays.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from megatron_lite.curation.documents import Document

FOR_MACHINES = re.compile(r"(?:#!.*\n|#.*coding[:=].*\n|<\?php\s*\n|\ufeff)*")
COMMENT = re.compile(
    r"\s*(?:/\*.*?\*/|<!--.*?-->|\"\"\".*?\"\"\"|\(\*.*?\*\)"
    r"|(?:(?://|#(?!\s*(?:include|define|if|ifdef|ifndef|pragma|import)\b)|--|;|%|dnl\b|rem\b)[^\n]*(?:\n|$)[ \t]*)+)"
    r"[ \t]*\n*",
    re.S | re.I,
)
NAMES_LICENCE = re.compile(
    r"copyright|licen[cs]ed? |licen[cs]e:|SPDX-License-Identifier|all rights reserved|\(c\) ?\d{4}", re.I
)


@dataclass(frozen=True)
class LicenceHeader:
    """Notes how many characters were cut as `licence_header` in the metadata."""

    name: ClassVar[str] = "licence_header"
    version: ClassVar[int] = 1

    max_characters: int = 20_000  # of a comment: a longer one is no header

    def __call__(self, document: Document) -> None:
        text = document.text
        kept = found.end() if (found := FOR_MACHINES.match(text)) else 0
        head = text[: kept + self.max_characters]
        end = kept
        while (comment := COMMENT.match(head, end)) and NAMES_LICENCE.search(comment[0]):
            end = comment.end()
        if end > kept:
            document.text = text[:kept] + text[end:]
            document.metadata["licence_header"] = end - kept
