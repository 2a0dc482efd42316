"""A comment at the head of a file that speaks of licence or copyright is cut; all else stays."""

import pytest

from megatron_lite.curation.documents import Document
from megatron_lite.curation.rules.licence_header import LicenceHeader

CODE = "import os\n\n# Copyright is spoken of here too.\nprint(os.name)\n"


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        ("# Copyright 2020 Somebody\n# Licensed under the Apache License\n\n", ""),
        (
            "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n# SPDX-License-Identifier: MIT\n",
            "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n",
        ),
        ("/*\n * All rights reserved.\n */\n", ""),
        ("// (c) 1999 A\n// License: BSD\n\n/* Copyright B */\n", ""),
        ('"""Copyright 2020 Somebody"""\n', ""),
        ("# What this file is for.\n", "# What this file is for.\n"),
        ("#include <stdio.h>\n/* Copyright */\n", "#include <stdio.h>\n/* Copyright */\n"),
        ("<?php\n// Copyright\n", "<?php\n"),
        ("-- Copyright 2001\n-- of a query\n", ""),
        ("", ""),
    ],
)
def test_only_the_header_goes(head: str, kept: str) -> None:
    document = Document("code/0/0", head + CODE, "code")
    assert LicenceHeader()(document) is None
    assert document.text == kept + CODE
    assert document.metadata == ({"licence_header": len(head) - len(kept)} if head != kept else {})


def test_a_comment_without_an_end_is_no_header() -> None:
    text = "/* Copyright " + "x" * 30_000 + " */\ncode\n"
    document = Document("code/0/0", text, "code")
    LicenceHeader()(document)
    assert document.text is text
