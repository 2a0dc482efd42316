"""Writes word_table.h and ../word_table.py, the character classes of the defined splitter (see ../words.py).

    pip install --target DIRECTORY unicodedata2 regex
    PYTHONPATH=DIRECTORY python megatron_lite/curation/csrc/make_word_table.py

The classes are pinned to one version of Unicode, whatever Python's own is: a corpus curated by another Python must
come out the same. Only a change of the definition, or the wish for younger scripts, is a reason to run this again.
"""

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

# Blocks of the scripts written without spaces between words: first and last code point.
SPACELESS_BLOCKS = [
    (0x0E00, 0x0E7F),  # Thai
    (0x0E80, 0x0EFF),  # Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x303C),  # iteration and closing marks
    (0x3041, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana phonetic extensions
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0xA9E0, 0xA9FF),  # Myanmar, extension B
    (0xAA60, 0xAA7F),  # Myanmar, extension A
    (0xF900, 0xFAFF),  # Han, compatibility ideographs
    (0xFF66, 0xFF9F),  # Katakana, half width
    (0x116D0, 0x116FF),  # Myanmar, extension C
    (0x1AFF0, 0x1B16F),  # Kana: extensions, supplement, small letters
    (0x20000, 0x3FFFF),  # Han: the ideographic planes
]
JOINERS = (0x200C, 0x200D)
# End sentences for datatrove, and are not Sentence_Terminal in Unicode: Khmer signs.
MORE_TERMINALS = (0x17D6, 0x17D9, 0x17DA)


def class_of(code: int, unicodedata: ModuleType) -> str | None:
    """The class "letter", "digit", "number", "spaceless" or "mark"; None for the underscore, space and symbols."""
    category = unicodedata.category(chr(code))
    if category[0] == "M" or code in JOINERS:
        return "mark"
    if category[0] == "L":
        return "spaceless" if any(first <= code <= last for first, last in SPACELESS_BLOCKS) else "letter"
    return {"Nd": "digit", "Nl": "number", "No": "number"}.get(category)


def runs_of(codes: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending code points as [(first, last), ...]."""
    runs: list[tuple[int, int]] = []
    for code in codes:
        if runs and runs[-1][1] == code - 1:
            runs[-1] = (runs[-1][0], code)
        else:
            runs.append((code, code))
    return runs


def wrapped(items: list[str], indent: str, separator: str) -> str:
    lines, line = [], indent
    for item in items:
        if len(line) + len(item) > 118:
            lines.append(line.rstrip())
            line = indent
        line += item + separator
    return "\n".join([*lines, line.rstrip()])


def main() -> None:
    import regex
    import unicodedata2

    folder = Path(__file__).resolve().parent
    members: dict[str, list[int]] = {"letter": [], "digit": [], "number": [], "spaceless": [], "mark": []}
    for code in range(0x110000):
        members.get(class_of(code, unicodedata2) or "none", []).append(code)
    uppercase = [code for code in range(0x110000) if unicodedata2.category(chr(code)) == "Lu"]
    is_terminal = regex.compile(r"\p{Sentence_Terminal}").match
    terminal = [code for code in range(0x110000) if is_terminal(chr(code)) or code in MORE_TERMINALS]
    origin = f"(Unicode {unicodedata2.unidata_version}), written by csrc/make_word_table.py"
    python = [f'"""Runs of code points (first-last) of the splitter\'s classes {origin}."""\n']
    cpp = [
        f"// Runs of code points (first, last) of the splitter's classes {origin}.\n",
        "#pragma once\n\n#include <cstdint>\n\nnamespace curation {\n",
        "struct Run {\n    std::uint32_t first, last;\n};\n",
    ]
    for name, codes in members.items():
        spans = [f"{a:x}-{b:x}" if b > a else f"{a:x}" for a, b in runs_of(codes)]
        python.append(f'{name.upper()} = """\n{wrapped(spans, "", " ")}\n"""\n')
    for name, codes in {**members, "uppercase": uppercase, "terminal": terminal}.items():
        pairs = [f"{{0x{a:x}, 0x{b:x}}}," for a, b in runs_of(codes)]
        cpp.append(f"inline constexpr Run {name}_runs[] = {{\n{wrapped(pairs, '    ', ' ')}\n}};\n")
    (folder.parent / "word_table.py").write_text("\n".join(python), encoding="utf-8")
    (folder / "word_table.h").write_text("\n".join([*cpp, "}  // namespace curation\n"]), encoding="utf-8")


if __name__ == "__main__":
    main()
