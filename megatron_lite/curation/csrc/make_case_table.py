"""Writes case_table.h: the lower case of every code point that has one by itself.

    python megatron_lite/curation/csrc/make_case_table.py

Pinned to the Unicode of the Python that runs this, for the reason given in make_word_table.py. Unicode never changes a
pair of cases once it is there, so another version only adds letters. A capital I with a dot (U+0130), whose lower case
is two code points, becomes "i".
"""

import unicodedata
from pathlib import Path


def pairs() -> list[tuple[int, int]]:
    lower = [(code, chr(code).lower()) for code in range(0x110000)]
    return [(code, ord(text[0])) for code, text in lower if text != chr(code)]


def runs_of(cased: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """Code points as [(first, last, step, distance to the lower case), ...]."""
    runs: list[tuple[int, int, int, int]] = []
    for code, lower in cased:
        first, last, step, distance = runs[-1] if runs else (0, 0, 0, 0)
        alone = first == last
        if runs and lower - code == distance and (code - last == step or (alone and code - last in (1, 2))):
            runs[-1] = (first, code, code - last, distance)
        else:
            runs.append((code, code, 1, lower - code))
    return runs


def main() -> None:
    lines, line = [], "   "
    for first, last, step, distance in runs_of(pairs()):
        item = f" {{0x{first:x}, 0x{last:x}, {step}, {distance}}},"
        if len(line) + len(item) > 118:
            lines.append(line)
            line = "   "
        line += item
    text = "\n".join([*lines, line])
    Path(__file__).with_name("case_table.h").write_text(
        f"""// Lower cases (Unicode {unicodedata.unidata_version}), written by make_case_table.py.

#pragma once

#include <cstdint>

namespace curation {{

// Every step-th code point from first to last has its lower case `distance` further on.
struct CaseRun {{
    std::uint32_t first, last, step;
    std::int32_t distance;
}};

inline constexpr CaseRun case_runs[] = {{
{text}
}};

}}  // namespace curation
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
