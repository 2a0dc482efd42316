// What the rules for code ask of a file (The Stack v2: Lozhkov et al. 2024, sections 2.1 and 2.3).

#pragma once

#include <algorithm>
#include <cstddef>
#include <string_view>

#include "lines.h"

namespace curation {

struct CodeShape {
    std::size_t characters = 0, letters = 0, letters_and_digits = 0;  // as str.isalpha() and str.isalnum() say
    std::size_t lines = 0, longest_line = 0, line_characters = 0;     // lines as str.splitlines() has them
    std::size_t encoded_characters = 0, longest_encoded = 0;          // of matches of EncodedData
    std::size_t hexadecimal_characters = 0;                           // of words that is_hexadecimal_word knows
};

inline bool is_hex(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

// Finds what the paper's three regular expressions match, as Python understands them:
//     [a-zA-Z0-9+/\n=]{64,}    (?:\b(?:0x|\\x)?[0-9a-fA-F]{2}(?:,|\b\s*)){8,}    (?:\\u[0-9a-fA-F]{4}){8,}
class EncodedData {
public:
    EncodedData(std::string_view text, CodeShape& shape) : text_(text), shape_(shape) {
        find_base64();
        find_repeated([this](std::size_t at) { return hex_unit(at); });
        if (contains(text, "\\u")) find_repeated([this](std::size_t at) { return escape_unit(at); });
    }

private:
    static constexpr std::size_t base64_characters = 64, repeats = 8;

    void add(std::size_t begin, std::size_t end) {
        const std::size_t characters = count_characters(text_.substr(begin, end - begin));
        shape_.encoded_characters += characters;
        shape_.longest_encoded = std::max(shape_.longest_encoded, characters);
    }

    void find_base64() {
        std::size_t begin = 0;
        for (std::size_t at = 0; at <= text_.size(); ++at) {
            if (at < text_.size() && is_base64(text_[at])) continue;
            if (at - begin >= base64_characters) add(begin, at);
            begin = at + 1;
        }
    }

    static bool is_base64(char c) {
        const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        return letter || (c >= '/' && c <= '9') || c == '+' || c == '\n' || c == '=';
    }

    // Matches of (unit){8,}; unit(at) is where the unit at `at` ends, or `at` where there is none.
    template <typename Unit>
    void find_repeated(Unit unit) {
        for (std::size_t begin = 0; begin < text_.size();) {
            std::size_t end = begin, units = 0;
            for (std::size_t next; (next = unit(end)) > end; end = next) ++units;
            if (units >= repeats) {
                add(begin, end);
                begin = end;
            } else {
                ++begin;
            }
        }
    }

    std::size_t hex_unit(std::size_t at) const {
        if (at + 2 > text_.size()) return at;
        const char first = text_[at];
        const bool prefixed = (first == '0' || first == '\\') && text_[at + 1] == 'x';
        std::size_t end = prefixed ? at + 2 : at;
        if (end + 2 > text_.size() || !is_hex(text_[end]) || !is_hex(text_[end + 1]) || !is_boundary(at)) return at;
        end += 2;
        if (end < text_.size() && text_[end] == ',') return end + 1;
        if (!is_boundary(end)) return at;
        while (end < text_.size() && class_at(text_, end) == Class::space) end += decode(text_, end).bytes;
        return end;
    }

    std::size_t escape_unit(std::size_t at) const {
        if (at + 6 > text_.size() || text_[at] != '\\' || text_[at + 1] != 'u') return at;
        return std::all_of(&text_[at + 2], &text_[at] + 6, is_hex) ? at + 6 : at;
    }

    // \b
    bool is_boundary(std::size_t at) const {
        const bool before = at > 0 && is_word(character_before(text_, at)), after = at < text_.size() && is_word(at);
        return before != after;
    }

    // \w, to which marks do not belong
    bool is_word(std::size_t at) const {
        const Class c = class_at(text_, at);
        return starts_word(c) || c == Class::spaceless;
    }

    std::string_view text_;
    CodeShape& shape_;
};

// 0x and hexadecimal digits, or at least eight of these with one above 9 and one below 10 among them: no decimal
// number, and hardly a word of a language.
inline bool is_hexadecimal_word(std::string_view word) {
    const bool prefixed = word.size() > 2 && word[0] == '0' && (word[1] == 'x' || word[1] == 'X');
    const std::string_view digits = prefixed ? word.substr(2) : word;
    if (!std::all_of(digits.begin(), digits.end(), is_hex)) return false;
    const auto decimal = std::count_if(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
    const auto size = static_cast<std::ptrdiff_t>(digits.size());
    return prefixed || (size >= 8 && decimal > 0 && decimal < size);
}

inline CodeShape measure_code(std::string_view text) {
    CodeShape shape;
    for (std::size_t at = 0; at < text.size(); ++shape.characters) {
        const Character character = decode(text, at);
        const Class c = characters().class_of(character.code);
        const bool letter = c == Class::letter || c == Class::spaceless;
        shape.letters += letter;
        shape.letters_and_digits += letter || c == Class::digit || c == Class::number;
        at += character.bytes;
    }
    for_each_split_line(text, [&](std::string_view line) {
        const std::size_t length = count_characters(line);
        ++shape.lines;
        shape.line_characters += length;
        shape.longest_line = std::max(shape.longest_line, length);
        return true;
    });
    EncodedData(text, shape);
    Splitter splitter(text);
    for (Token token; splitter.next(token);) {
        const std::string_view word = text.substr(token.begin, token.end - token.begin);
        if (token.is_word && is_hexadecimal_word(word)) shape.hexadecimal_characters += word.size();
    }
    return shape;
}

}  // namespace curation
