// What FineWeb's own filters ask of a text (Penedo et al. 2024, section 3.6), as datatrove counts it.

#pragma once

#include <cstddef>
#include <string_view>

#include "lines.h"
#include "repetition.h"
#include "words.h"

namespace curation {

struct LineShapes {
    std::size_t characters = 0;  // without newlines
    std::size_t newlines = 0;
    std::size_t tokens = 0;
    // Of lines that hold more than white space, as text.split("\n") has them:
    std::size_t lines = 0;
    std::size_t punctuated_lines = 0;  // whose last character, white space included, ends sentences in some script
    std::size_t short_lines = 0;
    std::size_t duplicate_characters = 0;  // of lines that stood before
};

inline LineShapes measure_line_shapes(std::string_view text, std::size_t short_line_characters) {
    LineShapes shapes;
    DuplicateCounter lines;
    for_each_line(text, [&](std::string_view line) {
        ++shapes.newlines;
        const std::size_t length = count_characters(line);
        shapes.characters += length;
        if (strip_left(line).empty()) return;
        lines.add(line);
        const std::size_t last = character_before(line, line.size());
        shapes.punctuated_lines += characters().ends_sentence(decode(line, last).code);
        shapes.short_lines += length <= short_line_characters;
    });
    --shapes.newlines;  // the last line has none
    shapes.lines = lines.counts().parts;
    shapes.duplicate_characters = lines.counts().duplicate_characters;
    Splitter splitter(text);
    for (Token token; splitter.next(token);) ++shapes.tokens;
    return shapes;
}

}  // namespace curation
