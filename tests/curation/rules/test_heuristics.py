"""Verdicts of the heuristic rules on small texts whose counts can be done by hand, and the table of rules."""

import pickle
from dataclasses import fields

import pytest

from megatron_lite.curation.documents import Document, Drop
from megatron_lite.curation.rules.boilerplate import BoilerplateLines
from megatron_lite.curation.rules.c4 import C4
from megatron_lite.curation.rules.code import Code
from megatron_lite.curation.rules.fineweb import FineWeb
from megatron_lite.curation.rules.gopher_quality import GopherQuality
from megatron_lite.curation.rules.gopher_repetition import GopherRepetition
from megatron_lite.curation.rules.licence import PERMISSIVE, Licence
from megatron_lite.curation.rules.refinedweb import RefinedWebLineRules
from megatron_lite.curation.rules.rule import Rule, check
from megatron_lite.curation.rules.table import RULES, TABLE, markdown
from megatron_lite.errors import UsageError

PROSE = "The cat sat with the dog and that was all that they have to be happy of"  # 17 words, all stop words but 8
DISTINCT = [f"word{chr(97 + i)}{chr(97 + j)}" for i in range(10) for j in range(10)]  # 100 different words of 6 letters


def judge(rule: Rule, text: str) -> Drop | None:
    return rule(Document("s/0/0", text, "s"))


def edited(rule: Rule, text: str) -> str:
    document = Document("s/0/0", text, "s")
    assert rule(document) is None
    return document.text


def words(count: int, *more: str) -> str:
    """That many different words, two of them stop words, and what else is given."""
    return " ".join(["the", "of", *DISTINCT][:count] + list(more))


@pytest.mark.parametrize(
    ("text", "drop"),
    [
        (words(50), None),
        (words(49), Drop("gopher_quality.words", "49 is below 50")),
        (words(49, "...", "#"), Drop("gopher_quality.words", "49 is below 50")),
        ("the of " + "ab " * 60, Drop("gopher_quality.mean_word_length", "2.016 is below 3")),
        ("the of " + "abcdefghijklm " * 60, Drop("gopher_quality.mean_word_length", "12.66 is above 10")),
        (words(80, *["#"] * 9), Drop("gopher_quality.hashes", "0.1011 is above 0.1")),
        (words(81, *["#"] * 9), None),  # 9 of 90 tokens
        (words(80, *["…"] * 9), Drop("gopher_quality.ellipses", "0.1011 is above 0.1")),
        ("\n".join(f"- {word}" for word in words(60).split()), Drop("gopher_quality.bullet_lines", "1 is above 0.9")),
        (
            "\n".join(f" • {word} x" for word in words(60).split()),
            Drop("gopher_quality.bullet_lines", "1 is above 0.9"),
        ),
        (
            "\n".join(
                [*["one two three four five six seven eight nine ten..."] * 3, *["the end of it"] * 4, words(20)]
            ),
            Drop("gopher_quality.ellipsis_lines", "0.375 is above 0.3"),
        ),
        (
            words(60, *[str(n) for n in range(1000, 1016)]),
            Drop("gopher_quality.alphabetic_words", "0.7895 is below 0.8"),
        ),
        (words(60, *[str(n) for n in range(1000, 1015)]), None),  # 60 of 75 tokens
        (" ".join(DISTINCT), Drop("gopher_quality.stop_words", "0 is below 2")),
        (" ".join(["the", "the", "The", *DISTINCT]), Drop("gopher_quality.stop_words", "1 is below 2")),
    ],
)
def test_gopher_quality(text: str, drop: Drop | None) -> None:
    assert judge(GopherQuality(), text) == drop


def test_gopher_quality_holds_a_document_of_too_many_words() -> None:
    drop = judge(GopherQuality(), "of the word " * 33_334)
    assert drop == Drop("gopher_quality.words", "100002 is above 100000")


@pytest.mark.parametrize(
    ("text", "drop"),
    [
        (" ".join(DISTINCT), None),
        ("", Drop("gopher_repetition.empty", "no text")),
        # 4 equal lines of 16 characters and an empty one: 3 of 5 parts stood before.
        ("We are the same.\n" * 4, Drop("gopher_repetition.duplicate_lines", "0.6 is above 0.3")),
        # 2 of 4 paragraphs.
        ("One.\n\nOne.\n\nOne.\n\nTwo.", Drop("gopher_repetition.duplicate_paragraphs", "0.5 is above 0.3")),
        # 1 of 4 paragraphs, with 15 of 43 characters.
        (
            "A longer text.!\n\nA longer text.!\n\nab\n\ncd e",
            Drop("gopher_repetition.duplicate_paragraph_characters", "0.3571 is above 0.2"),
        ),
        # 1 of 4 lines, with 15 of 39 characters.
        (
            "A longer text.!\nA longer text.!\nab\ncd e",
            Drop("gopher_repetition.duplicate_line_characters", "0.3846 is above 0.2"),
        ),
        # "aa bb" thrice: 15 of 45 characters.
        ("aa bb cc aa bb dd aa bb ee fff ggg hhh iii jj", Drop("gopher_repetition.top_2_gram", "0.3333 is above 0.2")),
    ],
)
def test_gopher_repetition(text: str, drop: Drop | None) -> None:
    assert judge(GopherRepetition(), text) == drop


@pytest.mark.parametrize("n", [3, 4])
def test_the_most_frequent_n_gram_counts_with_its_spaces(n: int) -> None:
    # Twice n words of 6 letters in 30 words of 6 and their spaces, and no shorter n-gram that the defaults would take.
    phrase, rest = DISTINCT[:n], DISTINCT[n : 30 - n]
    text = " ".join([*phrase, *rest, *phrase])
    share = 2 * (7 * n - 1) / (7 * 30 - 1)
    most = {f"max_top_{m}_gram": None for m in (2, 3, 4)} | {f"max_top_{n}_gram": share - 1e-9}
    rule = GopherRepetition(**most)
    assert judge(rule, text) == Drop(f"gopher_repetition.top_{n}_gram", f"{share:.4g} is above {share - 1e-9:g}")
    assert judge(GopherRepetition(**most | {f"max_top_{n}_gram": share}), text) is None


@pytest.mark.parametrize("n", range(5, 11))
def test_n_grams_that_stood_before_count_without_spaces_and_overlap(n: int) -> None:
    # n words, others, the n words twice more: 2 n x 6 letters stood before.
    phrase, rest = DISTINCT[:n], DISTINCT[n:60]
    text = " ".join([*phrase, *rest, *phrase, "between", *phrase])
    share = 12 * n / len(text)
    off = {field.name: None for field in fields(GopherRepetition)}
    assert judge(GopherRepetition(**off | {f"max_duplicate_{n}_grams": share}), text) is None
    drop = judge(GopherRepetition(**off | {f"max_duplicate_{n}_grams": share * 0.999}), text)
    assert drop is not None
    assert drop.rule == f"gopher_repetition.duplicate_{n}_grams"


SENTENCES = "This line has five words.\nAnd so has this one!\nIs this line the third?"


def test_c4_keeps_lines_that_end_as_sentences_do() -> None:
    cut = [
        "No end mark here at all",
        "Too short it is.",
        "It goes on and on and on...",
        f"{'x' * 1001} is a long word.",
        "",
    ]
    assert edited(C4(), "\n".join([*cut, SENTENCES, *cut])) == SENTENCES
    assert edited(C4(end_marks=""), f"{SENTENCES}\n{cut[0]}\n{cut[1]}") == f"{SENTENCES}\n{cut[0]}"


def test_c4_cuts_lines_on_javascript_cookies_and_policies_whatever_their_case() -> None:
    cut = [
        "Please enable JavaScript to see it.",
        "This site uses Cookies to serve you.",
        "Read our PRIVACY POLICY and be happy.",
    ]
    assert edited(C4(), "\n".join([*cut, SENTENCES])) == SENTENCES
    assert edited(C4(cut_javascript=False, cut_policies=False), "\n".join([*cut, SENTENCES])).count("\n") == 5


def test_c4_takes_citations_out_of_lines() -> None:
    text = SENTENCES.replace("words.", "words[12] of[edit] text[] here[citation needed].").replace(
        "third?", "third [a]?"
    )
    assert edited(C4(), text) == SENTENCES.replace("words.", "words of text here.").replace("third?", "third [a]?")


@pytest.mark.parametrize(
    ("text", "drop"),
    [
        (f"{SENTENCES}\nThe words lorem Ipsum are here.", Drop("c4.lorem_ipsum", "a line holds 'lorem ipsum'")),
        (f"{SENTENCES}\nThe sign {{ is in here.", Drop("c4.braces", "a line holds '{'")),
        (f"{SENTENCES}\nlorem ipsum {{ without an end mark", None),
        (f"{SENTENCES}\nJavascript with lots of {{ in it.", None),  # the first phrase cuts the line
        ("This line has five words.\nAnd so has this one!", Drop("c4.sentences", "2 is below 3")),
        ("This line has five words. Mr. Smith saw it.\nAnd so has this one!", None),
        ("This line of Mr. Smith has e.g. one.\nAnd so has this one!", Drop("c4.sentences", "2 is below 3")),
        ("No line is kept", Drop("c4.sentences", "0 is below 3")),
    ],
)
def test_c4_drops_documents(text: str, drop: Drop | None) -> None:
    assert judge(C4(), text) == drop


def test_a_dropped_document_keeps_its_text() -> None:
    document = Document("s/0/0", "Only this line has five words.\nAnother has not", "s")
    assert C4()(document) == Drop("c4.sentences", "1 is below 3")
    assert document.text == "Only this line has five words.\nAnother has not"


LONG = "a line that has more than thirty characters"


@pytest.mark.parametrize(
    ("text", "drop"),
    [
        (" \n\t\n", Drop("fineweb.empty", "no line holds more than white space")),
        ("\n".join(f"{LONG} {i}" + "." * (i == 0) for i in range(8)), None),  # 1 of 8
        (
            "\n".join(f"{LONG} {i}" + "." * (i == 0) for i in range(9)),
            Drop("fineweb.punctuated_lines", "0.1111 is below 0.12"),
        ),
        ("short one.\nshort two.\n" + LONG, None),
        ("short one.\nshort two.\nshort three.\n" + LONG, Drop("fineweb.short_lines", "0.75 is above 0.67")),
        (f"{LONG}.\n{LONG}.\n{LONG} again.", Drop("fineweb.duplicate_line_characters", "0.3188 is above 0.01")),
        ("a_word_of_many_more_than_thirty_characters.\n" * 3 + "x", None),
    ],
)
def test_fineweb(text: str, drop: Drop | None) -> None:
    rule = FineWeb(max_duplicate_line_characters=0.01 if "again" in text else 1.0, max_newlines=None)
    assert judge(rule, text) == drop


def test_fineweb_counts_newlines_to_tokens() -> None:
    lines = "\n".join(f"many_letters_in_one_single_word_of_line_{i}." for i in range(4))  # 8 tokens, 3 newlines
    assert judge(FineWeb(), lines) == Drop("fineweb.newlines", "0.375 is above 0.3")
    assert judge(FineWeb(max_newlines=0.375), lines) is None


def test_refinedweb_cuts_and_edits_lines() -> None:
    text = "\n".join(
        [
            "MAINLY CAPITALS in here",
            "12/03/2020",
            "3 likes",
            "1.2k Views",
            "Home",
            "",
            "A line, kept as it is: 3 likes it.",
            "---",
            "Sign in to read on",
            "The weather of today. Read more...",
            "You have 2 items in cart now",
        ]
    )
    rule = RefinedWebLineRules(max_flagged_words=None)
    assert edited(rule, text).split("\n") == [
        "",
        "A line, kept as it is: 3 likes it.",
        "---",
        "to read on",
        "The weather of today.",
        "You have 2  now",
    ]


def test_refinedweb_drops_a_document_of_many_flagged_words() -> None:
    flagged, kept = "LOUD WORDS", "one two three four five six seven eight nine ten eleven twelve"
    text = "\n".join([flagged] + [f"{kept} x{i}" for i in range(3)])  # 2 of 41 words
    assert edited(RefinedWebLineRules(), text) == text.partition("\n")[2]
    assert judge(RefinedWebLineRules(), f"{flagged} NOW\n{text.partition('LOUD WORDS')[2]}") == Drop(
        "refinedweb.flagged_words", "0.07143 is above 0.05"
    )


def test_boilerplate_cuts_short_lines_alone() -> None:
    long = (
        "JavaScript is a language, and whoever says that javascript is required says it here in a line of many words "
        * 2
    )
    text = f"Accept all Cookies\n{long}\n\nJavaScript is a language.\nPlease enable JavaScript!"
    assert edited(BoilerplateLines(), text) == f"{long}\n\nJavaScript is a language."
    assert edited(BoilerplateLines(), "nothing\n\nto cut\n") == "nothing\n\nto cut\n"


PROGRAM = "def add(a, b):\n    return a + b\n" * 5


@pytest.mark.parametrize(
    ("text", "drop"),
    [
        (PROGRAM, None),
        (f"# Auto-Generated by a tool\n{PROGRAM}", Drop("code.autogenerated", "'auto-generated' in the first 5 lines")),
        (f"{PROGRAM}# automatically generated\n", None),
        (f'<?xml version="1.0"?>\n{PROGRAM}', Drop("code.xml", "an XML declaration in the first 100 characters")),
        ("x\n" * 100_001, Drop("code.lines", "100001 is above 100000")),
        ("ab " * 34 + "\n" + "ab " * 34, Drop("code.mean_line_length", "102 is above 100")),
        (PROGRAM + "word " * 201, Drop("code.mean_line_length", "105 is above 100")),
        (PROGRAM * 2 + "word " * 201, Drop("code.line_length", "1005 is above 1000")),
        ("1, 2, 3,\n" * 9, Drop("code.alphabetic", "0 is below 0.25")),
        (f"x = '\n{'Zm9vYmFyMTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDEy' * 2}\n'" + PROGRAM, None),
        ("d = [\n" + ("4f " * 16 + "\n") * 22 + "]", Drop("code.encoded_run", "1078 is above 1024")),
        (PROGRAM + "t = 0xdeadbeef, 0x12345678,\n" * 4, Drop("code.hexadecimal", "0.2941 is above 0.25")),
        (PROGRAM + "t = 3f2504e04f89 and 123456789012\n" * 3, None),  # 36 of 262 characters
        ("s = \n" + "\\u00ea" * 12 + " and few words", Drop("code.encoded", "0.7912 is above 0.5")),
    ],
)
def test_code(text: str, drop: Drop | None) -> None:
    assert judge(Code(), text) == drop


def test_code_of_assembly_is_judged_by_letters_and_digits() -> None:
    text = "1, 2, 3,\n" * 9  # 3 digits in 9 characters
    assert judge(Code(min_alphabetic=None, min_alphanumeric=0.25), text) is None
    assert judge(Code(min_alphabetic=None, min_alphanumeric=0.34), text) == Drop(
        "code.alphanumeric", "0.3333 is below 0.34"
    )


def test_files_of_data_languages_can_be_held_to_a_size() -> None:
    rule = Code(min_characters=50, max_characters=5000)
    assert judge(rule, "a: b\n") == Drop("code.characters", "5 is below 50")
    assert judge(rule, "key: word\n" * 501) == Drop("code.characters", "5010 is above 5000")
    assert judge(rule, "key: word\n" * 500) is None


APACHE = '# Licensed under the Apache License, Version 2.0 (the "License");\n# you may not use this file'
MIT = "/* Permission is hereby granted, free of charge, to any person obtaining a copy\n * of this software and */"
BSD = "// Redistribution and use in source and binary forms, with or without\n// modification"


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ("# SPDX-License-Identifier: MIT\n", "MIT"),
        ("<!-- SPDX-License-Identifier: MIT -->", "MIT"),
        ("# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception and more", "Apache-2.0 WITH LLVM-exception"),
        ("/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */", "(GPL-2.0 OR MIT)"),
        (APACHE, "Apache-2.0"),
        (MIT, "MIT"),
        (BSD, "BSD-2-Clause"),
        (f"{BSD}\n// Neither the name of the\n", "BSD-3-Clause"),
        ("; under the terms of the GNU Lesser General\n; Public License as published", "LGPL"),
        ("the GNU General Public License", "GPL"),
        ("import os\n", "unknown"),
        ("\n" * 5000 + APACHE, "unknown"),
    ],
)
def test_the_licence_in_a_files_head_is_noted(head: str, licence: str) -> None:
    document = Document("s/0/0", head + "\nint x;\n", "s")
    assert Licence()(document) is None
    assert document.metadata["licence"] == licence


@pytest.mark.parametrize(
    ("licence", "is_allowed"),
    [
        ("MIT", True),
        ("GPL-2.0-only", False),
        ("(GPL-2.0 OR MIT)", True),
        ("GPL-2.0 AND MIT", False),
        ("Apache-2.0 WITH LLVM-exception", True),
    ],
)
def test_licences_off_the_list_are_dropped(licence: str, is_allowed: bool) -> None:
    drop = judge(Licence(allowed=PERMISSIVE), f"# SPDX-License-Identifier: {licence}\n")
    assert (drop is None) == is_allowed
    if not is_allowed:
        assert drop.rule == "licence.allowed"
        assert drop.detail.startswith(f"{licence} is none of 0BSD, Apache-2.0")
    assert judge(Licence(allowed=("MIT",)), "int x;") == Drop("licence.allowed", "unknown is none of MIT")


def test_none_switches_a_threshold_off() -> None:
    off = {field.name: None for field in fields(GopherQuality) if field.name != "stop_words"}
    assert judge(GopherQuality(**off), "# # # - ...") is None


def test_a_drop_never_reads_like_its_threshold() -> None:
    assert check("r", 0.1 + 1e-12, most=0.1).detail == "0.10000000000100001 is above 0.1"
    assert check("r", 0.1, most=0.1) is None
    assert check("r", 0.1, least=0.1) is None


def test_every_field_of_every_rule_stands_in_the_table() -> None:
    told = {(row.rule, option) for row in TABLE for option in row.options}
    assert told == {(name, field.name) for name, rule in RULES.items() for field in fields(rule)}
    assert markdown().count("\n") == len(TABLE) + 1


def test_the_defaults_are_the_papers() -> None:
    """Typed in from the papers, apart from the code."""
    papers = {
        "gopher_quality": [50, 100_000, 3, 10, 0.1, 0.1, 0.9, 0.3, 0.8, 2],
        "gopher_repetition": [0.3, 0.2, 0.3, 0.2, 0.2, 0.18, 0.16, 0.15, 0.14, 0.13, 0.12, 0.11, 0.1],
        "c4": ['.?!"', 5, 1000, 3, True, True, True, True, True],
        "fineweb": [0.12, 0.67, 30, 0.01, 0.3],
        "refinedweb": [0.05],
        "code": [None, None, 100_000, 100, 1000, 0.25, None, 0.5, 1024, 0.25, True],
    }
    for name, values in papers.items():
        assert [field.default for field in fields(RULES[name])][: len(values)] == values, name


@pytest.mark.parametrize("name", sorted(set(RULES) - {"decontamination"}))  # that one needs a table
def test_a_rule_goes_to_another_process_also_after_use(name: str) -> None:
    rule = RULES[name]()
    before = judge(rule, PROSE)
    copy = pickle.loads(pickle.dumps(rule))
    assert copy == rule
    assert judge(copy, PROSE) == before


def test_more_stop_words_than_can_be_told_apart_are_refused() -> None:
    assert GopherQuality(stop_words=tuple(DISTINCT[:64])).stop_words[63] == DISTINCT[63]
    with pytest.raises(UsageError, match="65 stop words; at most 64 can be told apart"):
        GopherQuality(stop_words=tuple(DISTINCT[:65]))
