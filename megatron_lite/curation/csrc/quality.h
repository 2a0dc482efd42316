// What the Gopher quality rules ask of a text (Rae et al. 2021, section A.1.1).

#pragma once

#include <bitset>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "lines.h"
#include "words.h"

namespace curation {

struct Quality {
    std::size_t tokens = 0;            // words and symbols
    std::size_t words = 0;
    std::size_t word_characters = 0;   // of all words together
    std::size_t alphabetic_words = 0;  // words with a letter
    std::size_t stop_words = 0;        // different ones of those asked for
    std::size_t hashes = 0;
    std::size_t ellipses = 0;          // "..." and U+2026
    std::size_t lines = 0;             // as str.splitlines() has them
    std::size_t bullet_lines = 0;      // that begin with U+2022 or "-"
    std::size_t ellipsis_lines = 0;    // that end with an ellipsis
};

inline constexpr std::size_t most_stop_words = 64;

inline bool has_letter(std::string_view word) {
    for (std::size_t at = 0; at < word.size();) {
        const Character character = decode(word, at);
        const Class c = characters().class_of(character.code);
        if (c == Class::letter || c == Class::spaceless) return true;
        at += character.bytes;
    }
    return false;
}

inline void measure_words(std::string_view text, const std::vector<std::string>& stop_words, Quality& quality) {
    std::bitset<most_stop_words> seen;
    std::size_t longest = 0;
    for (const std::string& word : stop_words) longest = std::max(longest, word.size());
    Splitter splitter(text);
    for (Token token; splitter.next(token); ++quality.tokens) {
        if (!token.is_word) continue;
        const std::string_view word = text.substr(token.begin, token.end - token.begin);
        ++quality.words;
        quality.word_characters += count_characters(word);
        quality.alphabetic_words += has_letter(word);
        if (word.size() > longest) continue;
        for (std::size_t i = 0; i < stop_words.size(); ++i)
            if (word == stop_words[i]) seen.set(i);
    }
    quality.stop_words = seen.count();
}

inline void measure_lines(std::string_view text, Quality& quality) {
    const std::string_view ellipsis = "\xe2\x80\xa6", bullet = "\xe2\x80\xa2";
    quality.hashes = count_occurrences(text, "#");
    quality.ellipses = count_occurrences(text, "...") + count_occurrences(text, ellipsis);
    for_each_split_line(text, [&](std::string_view line) {
        ++quality.lines;
        const std::string_view left = strip_left(line);
        quality.bullet_lines += starts_with(left, "-") || starts_with(left, bullet);
        const std::string_view right = strip_right(left);
        quality.ellipsis_lines += ends_with(right, "...") || ends_with(right, ellipsis);
        return true;
    });
}

// At most `most_stop_words` stop words, each different from the others.
inline Quality measure_quality(std::string_view text, const std::vector<std::string>& stop_words) {
    Quality quality;
    measure_words(text, stop_words, quality);
    measure_lines(text, quality);
    return quality;
}

}  // namespace curation
