"""The licence that a file names in its head, noted in the metadata, and a list of those allowed.

The Stack (Kocetkov et al. 2022, arXiv 2211.15533) keeps permissive licences alone; PERMISSIVE are those of its list,
the Blue Oak Council's, that this rule can tell. A file's own words decide: its repository's are not in the text.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from megatron_lite.curation.documents import Document, Drop

UNKNOWN = "unknown"  # no licence is named, or none that is known here
PERMISSIVE = tuple(
    "0BSD Apache-2.0 BSD-2-Clause BSD-3-Clause BSL-1.0 CC0-1.0 ISC MIT PostgreSQL PSF-2.0 Unlicense Zlib".split()
)
HEAD_CHARACTERS = 4000
SPDX = re.compile(r"SPDX-License-Identifier:[ \t]*(\(*[\w.+-]+\)*(?: +(?:OR|AND|WITH) +\(*[\w.+-]+\)*)*)")
BETWEEN_WORDS = re.compile(r"[\s#*/;%!|\"<>-]+")  # white space, and what comments put before a line
# What is looked for in the head, in lower case, one space between words; the first that is found decides.
PHRASES = {
    "gnu affero general public license": "AGPL",
    "gnu lesser general public license": "LGPL",
    "gnu library general public license": "LGPL",
    "gnu general public license": "GPL",
    "mozilla public license": "MPL-2.0",
    "eclipse public license": "EPL-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "boost software license": "BSL-1.0",
    "licensed to psf under a contributor agreement": "PSF-2.0",
    "psf license agreement": "PSF-2.0",
    "postgresql license": "PostgreSQL",
    "free and unencumbered software released into the public domain": "Unlicense",
    "creative commons zero": "CC0-1.0",
    "cc0 1.0 universal": "CC0-1.0",
    "permission is hereby granted, free of charge, to any person obtaining a copy of this software": "MIT",
    "mit license": "MIT",
    "permission to use, copy, modify, and distribute this software for any purpose with or without fee": "ISC",
    "permission to use, copy, modify, and or distribute this software for any purpose with or without fee": "ISC",
    "this notice may not be removed or altered from any source distribution": "Zlib",
    "neither the name of": "BSD-3-Clause",
    "redistribution and use in source and binary forms": "BSD-2-Clause",
    "proprietary and confidential": "proprietary",
}


@dataclass(frozen=True)
class Licence:
    name: ClassVar[str] = "licence"
    version: ClassVar[int] = 1

    allowed: tuple[str, ...] | None = None  # SPDX identifiers and "unknown"; None: every licence

    def __call__(self, document: Document) -> Drop | None:
        licence = detect_licence(document.text)
        document.metadata["licence"] = licence
        if self.allowed is None or is_allowed(licence, self.allowed):
            return None
        return Drop("licence.allowed", f"{licence} is none of {', '.join(self.allowed)}")


def detect_licence(text: str) -> str:
    """The SPDX expression in a file's head, or the licence whose words stand there, or "unknown"."""
    head = text[:HEAD_CHARACTERS]
    if match := SPDX.search(head):
        return match[1]
    words = BETWEEN_WORDS.sub(" ", head).lower()
    return next((licence for phrase, licence in PHRASES.items() if phrase in words), UNKNOWN)


def is_allowed(expression: str, allowed: tuple[str, ...]) -> bool:
    """Whether an SPDX expression (A OR B, A AND B, A WITH exception) leaves a choice of allowed licences."""
    choices = (choice.split(" AND ") for choice in expression.replace("(", "").replace(")", "").split(" OR "))
    return any(all(licence.split(" WITH ")[0].strip() in allowed for licence in choice) for choice in choices)
